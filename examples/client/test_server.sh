#!/usr/bin/env bash
# Goes through every endpoint of a running server with curl and jq, and checks what it answers.
#
#   bash examples/client/test_server.sh [http://localhost:3000]
#
# The requests are the examples of the API's documentation, word for word. Every line that it prints
# is a check that passed; at the first answer that is not as documented it says what it expected
# and what it got, and exits with 1. test_server.py, beside it, checks more.
set -euo pipefail
trap 'echo "FAILED  line $LINENO: $BASH_COMMAND" >&2' ERR

BASE_URL="${1:-${BASE_URL:-http://localhost:3000}}"
BASE_URL="${BASE_URL%/}"

# The examples name the default address; they are sent to the server that was asked for.
curl() {
  command curl -sS --noproxy '*' --max-time 300 "${@/#http:\/\/localhost:3000/$BASE_URL}"
}

ok() {
  printf '  ok  %s\n' "$1"
}

mismatch() { # WHAT EXPECTED GOT
  printf '\nMISMATCH  %s\n  expected: %s\n  got:      %s\n' "$@"
  exit 1
}

is() { # WHAT FILTER JSON: the filter of jq is true of the JSON
  jq -e "$2" >/dev/null 2>&1 <<<"$3" || mismatch "$1" "$2" "$3"
  ok "$1"
}

refused() { # STATUS CURL-ARGUMENTS...: it is answered with that status and a reason
  local expected=$1 answer status
  shift
  answer=$(curl -w '\n%{http_code}' "$@")
  status=${answer##*$'\n'}
  answer=${answer%$'\n'*}
  [ "$status" = "$expected" ] || mismatch "$*: status" "$expected" "$status $answer"
  jq -e '.detail | type == "string" and length > 0' >/dev/null 2>&1 <<<"$answer" \
    || mismatch "$*: the error" '{"detail": "..."}' "$answer"
}

streamed() { # WHAT STREAM: it is a stream of one answer, to its end
  local strange events
  strange=$(grep -Ev '^(data: |id: |retry: |:|$)' <<<"$2" || true)
  [ -z "$strange" ] || mismatch "$1" 'lines that begin with "data: "' "$strange"
  events=$(sed -n 's/^data: //p' <<<"$2" | jq -cs .) \
    || mismatch "$1" 'a JSON object in every data line' "$2"
  is "$1: text events, then one done" '
    (map(select(.type == "text").content) | add | length > 0)
    and map(select(.type == "done" or .type == "error").type) == ["done"]
    and last.type == "done"' "$events"
}

echo "Checking $BASE_URL"

echo
echo "Health and status"
HEALTH=$(curl http://localhost:3000/health)
is "GET /health: status, authenticated, active_sessions, timestamp" '
  .status == "healthy" and (.authenticated | type == "boolean")
  and (.active_sessions | type == "number") and (.timestamp | type == "string")' "$HEALTH"
is "there is a Claude credential (else see docs/authentication.md)" '.authenticated' "$HEALTH"
is "GET /: name, version, endpoints" '
  (.name | type == "string") and (.version | type == "string")
  and (.endpoints | contains(["/health", "/query", "/session/start"]))' \
  "$(curl http://localhost:3000/)"

echo
echo "Documentation"
for path in /docs /redoc; do
  TYPE=$(curl -o /dev/null -w '%{http_code} %{content_type}' "http://localhost:3000$path")
  [[ "$TYPE" == "200 text/html"* ]] || mismatch "GET $path" "200 text/html" "$TYPE"
  ok "GET $path: a page"
done
is "GET /openapi.json: every operation" '
  .paths | has("/health") and has("/") and .["/query"].post and .["/session/start"].post
  and .["/session/{session_id}"].get and .["/session/{session_id}"].delete
  and .["/session/{session_id}/query"].post and .["/session/{session_id}/interrupt"].post
  and .["/sessions"].get' "$(curl http://localhost:3000/openapi.json)"

echo
echo "One-off queries"
ANSWER=$(curl -X POST http://localhost:3000/query \
  -H "Content-Type: application/json" \
  -d '{"prompt": "What is 2+2?"}')
is "POST /query: response, duration_ms, num_turns, total_cost_usd" '
  (.response | type == "string" and length > 0) and (.duration_ms | type == "number")
  and (.num_turns | type == "number") and (.total_cost_usd | type == "number")' "$ANSWER"

ANSWER=$(curl -X POST http://localhost:3000/query \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "Create a Python script that prints Hello World",
    "allowed_tools": ["Write"],
    "permission_mode": "acceptEdits"
  }' | jq '.response')
is "POST /query: allowed_tools, permission_mode" 'type == "string" and length > 0' "$ANSWER"

STREAM=$(curl -N -X POST http://localhost:3000/query \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "Count from 1 to 10 slowly",
    "stream": true
  }')
streamed "POST /query, streaming" "$STREAM"

echo
echo "Conversation sessions"
# Start conversation
STARTED=$(curl -s -X POST http://localhost:3000/session/start \
  -H "Content-Type: application/json" \
  -d '{"initial_prompt": "I want to learn Docker"}')
is "POST /session/start: session_id, status, initial_response, created_at" '
  (.session_id | test("^[0-9a-f-]{36}$")) and .status == "started"
  and (.initial_response | type == "string" and length > 0)
  and (.created_at | type == "string")' "$STARTED"
SESSION=$(jq -r '.session_id' <<<"$STARTED")
trap 'curl -o /dev/null -X DELETE "http://localhost:3000/session/$SESSION" || true' EXIT

# Ask follow-up questions (Claude remembers context)
ANSWER=$(curl -X POST http://localhost:3000/session/$SESSION/query \
  -H "Content-Type: application/json" \
  -d '{"prompt": "What is a Dockerfile?"}')
is "POST /session/{session_id}/query: session_id, response, duration_ms" '
  .session_id == "'"$SESSION"'" and (.response | type == "string" and length > 0)
  and (.duration_ms | type == "number")' "$ANSWER"
ANSWER=$(curl -X POST http://localhost:3000/session/$SESSION/query \
  -H "Content-Type: application/json" \
  -d '{"prompt": "Which software did I say that I want to learn? Answer with its name."}' \
  | jq '.response')
is "POST /session/{session_id}/query: it remembers" 'test("docker"; "i")' "$ANSWER"
STREAM=$(curl -N -X POST http://localhost:3000/session/$SESSION/query \
  -H "Content-Type: application/json" \
  -d '{"prompt": "Show me an example", "stream": true}')
streamed "POST /session/{session_id}/query, streaming" "$STREAM"

is "GET /session/{session_id}: session_id, created_at, active, model" '
  .session_id == "'"$SESSION"'" and (.created_at | type == "string") and .active == true
  and (.model | type == "string")' "$(curl http://localhost:3000/session/$SESSION)"
is "GET /sessions: active_sessions, count" '
  (.active_sessions | index("'"$SESSION"'") != null) and .count == (.active_sessions | length)' \
  "$(curl http://localhost:3000/sessions)"
is "POST /session/{session_id}/interrupt: status, session_id" '
  .status == "interrupted" and .session_id == "'"$SESSION"'"' \
  "$(curl -X POST http://localhost:3000/session/$SESSION/interrupt)"

# Clean up
ANSWER=$(curl -X DELETE http://localhost:3000/session/$SESSION)
trap - EXIT
is "DELETE /session/{session_id}: status, session_id" '
  .status == "closed" and .session_id == "'"$SESSION"'"' "$ANSWER"
refused 404 "http://localhost:3000/session/$SESSION"
refused 404 -X DELETE "http://localhost:3000/session/$SESSION"
refused 404 -X POST "http://localhost:3000/session/$SESSION/interrupt"
refused 404 -X POST "http://localhost:3000/session/$SESSION/query" \
  -H "Content-Type: application/json" -d '{"prompt": "Tell me more about that"}'
ok "404 for a closed session: GET, DELETE, interrupt, query"

echo
echo "Errors"
refused 400 -X POST http://localhost:3000/query -H "Content-Type: application/json" -d '{}'
refused 400 -X POST http://localhost:3000/query -H "Content-Type: application/json" -d '{'
ok "400 for a request without its prompt, and for one that is not JSON"
refused 404 http://localhost:3000/no/such/path
ok "404 for an unknown path"

echo
echo "All checks passed."
