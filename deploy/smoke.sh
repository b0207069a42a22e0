#!/usr/bin/env bash
# Try the image with a real engine, on the offline model: build it, start it as compose.yaml says, use
# it, stop it in the middle of a turn, start it again. Needs Docker with Compose, and curl; fetches
# the base image and packages. Its containers and volumes are its own, and are removed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PORT="${PORT:-3999}"
compose=(docker compose --project-name "session-supervisor-smoke-$$" --profile offline)
trap '"${compose[@]}" down --volumes --timeout 5 >/dev/null 2>&1' EXIT

say() { printf '== %s\n' "$*"; }
inside() { "${compose[@]}" exec -T offline "$@"; }
ask() {
  curl --silent --show-error --max-time 60 "http://127.0.0.1:$PORT$1" \
    -H "X-API-Key: $key" -H 'Content-Type: application/json' -d "$2"
}
bash_tool() {
  ask /query "{\"prompt\": \"[[tool Bash {\\\"command\\\": \\\"$1\\\"}]]\", \"allowed_tools\": [\"Bash\"]}"
}
expect() {
  case "$2" in
    *"$1"*) say "$3" ;;
    *) printf 'FAILED: %s\n%s\n' "$3" "$2" >&2; exit 1 ;;
  esac
}

"${compose[@]}" build
"${compose[@]}" up --detach --wait offline
say "it started, and is healthy"
expect first-key "$("${compose[@]}" logs offline)" "the log says where the first key is"
key="$(inside cat /var/lib/session-supervisor/first-key)"

expect Hello "$(ask /query '{"prompt": "[[say Hello]]"}')" "it answers with the key"
expect unauthorized "$(key=wrong; ask /query '{"prompt": "[[say Hello]]"}')" "and not without"
expect uid=10001 "$(bash_tool id)" "sessions are not root"
expect "Read-only file system" "$(bash_tool 'touch /usr/x 2>&1')" "the file system is read-only"
expect 0000000000000000 "$(bash_tool 'grep CapBnd /proc/self/status')" "no capability is left"
expect "version 2" "$(bash_tool 'git --version')" "git is there"
expect tini "$(inside cat /proc/1/comm)" "an init is the first process"

answer="$(mktemp)"
ask /query '{"prompt": "[[slow tokens=1000 delay_ms=100]]"}' >"$answer" &
sleep 2
"${compose[@]}" stop offline
wait %1
expect interrupted "$(cat "$answer")" "who waited when it stopped was answered"
rm "$answer"
expect '"ExitCode": 0' \
  "$(docker inspect "$("${compose[@]}" ps --all --quiet offline)" --format '"ExitCode": {{.State.ExitCode}}')" \
  "it ended by itself"

"${compose[@]}" up --detach --wait offline
expect Again "$(ask /query '{"prompt": "[[say Again]]"}')" "the key outlives the container"
say "all is well"
