"use strict";

const api = document.getElementById("api");

SwaggerUIBundle({
  domNode: api,
  url: api.dataset.openapi,
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // no badge: it would send the document to a server elsewhere
});
