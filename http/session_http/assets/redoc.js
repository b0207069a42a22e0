"use strict";

const api = document.getElementById("api");
const font = "system-ui, sans-serif"; // redoc's own choices would have to come from a font server

Redoc.init(
  api.dataset.openapi,
  {
    nativeScrollbars: true,
    theme: { typography: { fontFamily: font, headings: { fontFamily: font } } },
  },
  api,
);
