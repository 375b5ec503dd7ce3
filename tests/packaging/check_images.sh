#!/usr/bin/env bash
# Builds every image and runs the system composed of them without a Docker engine: server, worker, bulk worker and gateway,
# to an answered HTTP request; and validates compose.yaml. Wants Debian and root.
#
# The Dockerfiles are built as they stand: their base image is imitated by a debootstrap of the same Debian release,
# imported under the same name. `chroot` isolation needs no cgroups, so this runs inside a container or a small VM too.
# What is missing is installed with apt-get: buildah, curl, debootstrap, docker-compose. Images and base stay in .cache/images.
#
# TORCH_INDEX_URL chooses the build of torch, as in compose.yaml; unset: the index that pip is set up with.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly BASE=localhost/debian:bookworm-slim # what buildah takes the short name debian:bookworm-slim for
readonly CACHE=$PWD/.cache/images
readonly PYTHON=$PWD/.venv/bin/python
SCRATCH=$(mktemp -d)
declare -a STARTED=()

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'images-check: %s\n' "$*" >&2; exit 1; }
images() { buildah --root "$CACHE/store" --runroot "$SCRATCH/run" "$@"; }

finish() {
  for pid in "${STARTED[@]}"; do kill "$pid" 2>/dev/null || true; done
  images rm --all >/dev/null 2>&1 || true
  rm -rf "$SCRATCH"
}
trap finish EXIT

wait_until() { # DESCRIPTION SECONDS COMMAND...
  local description=$1 deadline=$((SECONDS + $2)); shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "waited in vain until $description"
    sleep 0.2
  done
}

need_tools() {
  local missing=()
  for tool in buildah curl debootstrap docker-compose; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null || fail "install ${missing[*]} first"
  say "installing ${missing[*]} with apt-get"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}"
}

check_compose() {
  say "compose.yaml: every profile validates"
  for profile in cpu gpu monitoring tools; do docker-compose --file compose.yaml --profile "$profile" config --quiet; done
  docker-compose --file compose.yaml config --services | sort | paste -sd' '
}

import_base() {
  if images inspect --type image "$BASE" >/dev/null 2>&1; then return; fi
  say "base: debootstrap, imported as $BASE"
  debootstrap --variant=minbase bookworm "$SCRATCH/rootfs" >"$SCRATCH/debootstrap.log" || { tail "$SCRATCH/debootstrap.log"; fail "debootstrap"; }
  tar -C "$SCRATCH/rootfs" -cf "$SCRATCH/rootfs.tar" .
  local container; container=$(images from scratch)
  images add --quiet "$container" "$SCRATCH/rootfs.tar" /
  images commit --quiet --rm "$container" "$BASE"
}

build() { # NAME DOCKERFILE BUILD-OPTIONS...
  local name=$1 dockerfile=$2; shift 2
  say "build: $dockerfile"
  images bud --isolation chroot --format docker --layers --pull-never --network host --tag "$name" --file "$dockerfile" "$@" . \
    >"$SCRATCH/$name.log" 2>&1 || { tail -30 "$SCRATCH/$name.log"; fail "$dockerfile does not build"; }
  images images --format '{{.Name}} {{.Size}}' "$name"
}

inside() { # CONTAINER COMMAND...: as the image's own user, on this machine's loopback
  local container=$1; shift
  images run --isolation chroot --network host "$container" -- "$@"
}

start() { # LOG COMMAND...
  local log=$1; shift
  "$@" >"$log" 2>&1 &
  STARTED+=("$!")
}

start_server() {
  PORT=$(free_port)
  local server; server=$("$PYTHON" -c 'from tokenmill.embedded import find_server; print(find_server())')
  mkdir "$SCRATCH/queue"
  start "$SCRATCH/server.log" "$server" configs/redis.conf --port "$PORT" --bind 127.0.0.1 --dir "$SCRATCH/queue"
  wait_until "the server answers" 10 "$PYTHON" -c "import redis; redis.Redis(port=$PORT).ping()"
}

check_job() { # MODEL CHECK-OF-THE-TEXT: a worker in one image, a producer in the other, one queue between
  local model=$1 check=$2 url="redis://127.0.0.1:$PORT/0" queue="check-$1" answer lease worker
  say "a job of the model $model, from one image to the other"
  start "$SCRATCH/worker-$model.log" inside "$WORKER" tokenmill worker --model "$model" --redis "$url" --queue "$queue"
  worker=${STARTED[-1]}
  answer=$(inside "$PRODUCER" env "TOKENMILL_QUEUE=$queue" TOKENMILL_REDIS_URL="$url" \
    timeout 300 tokenmill submit --max-tokens 8 --temperature 0 --json "What is the capital of France?") || { tail "$SCRATCH/worker-$model.log"; fail "no answer from $model"; }
  printf '%s\n' "$answer"
  printf '%s' "$answer" | "$PYTHON" -c "import json, sys; answer = json.load(sys.stdin); assert $check, answer"
  inside "$PRODUCER" env "TOKENMILL_QUEUE=$queue" TOKENMILL_REDIS_URL="$url" sh -ec 'cd "$(mktemp -d)"
    printf "%s\n" "{\"prompt\": \"One\"}" "{\"prompt\": \"Two\"}" >rows.jsonl
    tokenmill bulk run rows.jsonl --out done.jsonl --max-tokens 8
    [ "$(wc -l <done.jsonl)" = 2 ]' || fail "no bulk run with $model"
  lease=$(inside "$WORKER" env "TOKENMILL_QUEUE=$queue" TOKENMILL_REDIS_URL="$url" python3 -m tokenmill_worker.queue.liveness) ||
    fail "the health check does not see the worker: $lease"
  echo "the health check sees it: $lease"
  lease=${lease%-*} # <host>-<process>-<incarnation>; there is no PID namespace, so the process is one of this machine
  kill -TERM "${lease##*-}" # to the worker itself: buildah passes no signals on
  wait "$worker" || fail "the worker did not leave in peace on SIGTERM: $(tail -3 "$SCRATCH/worker-$model.log")"
  echo "the worker drained and left on SIGTERM"
}

free_port() { "$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

stop_inside() { # LOG PID-OF-BUILDAH WHAT: buildah passes no signals on, so the program told its process first
  kill -TERM "$(sed -n 's/^process //p' "$1" | head -1)"
  wait "$2" || fail "the $3 did not leave in peace on SIGTERM: $(tail -3 "$1")"
  echo "the $3 left on SIGTERM"
}

check_door() { # the composed system: a worker, a bulk worker and a gateway, asked over HTTP as OpenAI's clients ask
  local url="redis://127.0.0.1:$PORT/0" queue=door files=/files door metrics worker bulk gateway
  local told='echo "process $$"; exec "$@"' # the process has the same number in there: there is no PID namespace
  say "the composed system, asked over HTTP"
  door=$(free_port) metrics=$(free_port)
  start "$SCRATCH/door-worker.log" inside "$WORKER" sh -c "$told" sh \
    tokenmill worker --model echo --redis "$url" --queue "$queue" --metrics-port "$metrics"
  worker=${STARTED[-1]}
  start "$SCRATCH/door-bulk.log" inside "$PRODUCER" env "TOKENMILL_QUEUE=$queue" "TOKENMILL_FILES=$files" sh -c "$told" sh \
    tokenmill bulk worker --redis "$url"
  bulk=${STARTED[-1]}
  start "$SCRATCH/door.log" inside "$PRODUCER" env "TOKENMILL_QUEUE=$queue" "TOKENMILL_FILES=$files" sh -c "$told" sh \
    tokenmill gateway --redis "$url" --port "$door"
  gateway=${STARTED[-1]}
  wait_until "the gateway is ready, with a worker behind it" 120 curl --fail --silent "http://127.0.0.1:$door/readyz"
  curl --fail --silent --max-time 60 "http://127.0.0.1:$door/v1/chat/completions" -H 'content-type: application/json' \
    -d '{"model": "echo", "max_tokens": 8, "messages": [{"role": "user", "content": "Why is the sky blue?"}]}' |
    tee "$SCRATCH/answer.json" || fail "no answer over HTTP: $(tail -3 "$SCRATCH/door.log")"
  echo
  "$PYTHON" -c "import json; answer = json.load(open('$SCRATCH/answer.json')); assert answer['usage']['completion_tokens'] == 8"
  "$PYTHON" -m tests.packaging.ask_batch "http://127.0.0.1:$door" || fail "no batch: $(tail -3 "$SCRATCH/door-bulk.log")"
  curl --fail --silent "http://127.0.0.1:$door/metrics" | grep '^tokenmill_queue_workers{' || fail "no metrics of the gateway"
  curl --fail --silent "http://127.0.0.1:$metrics/metrics" | grep '^tokenmill_request_success_total{.*length' || fail "no metrics of the worker"
  stop_inside "$SCRATCH/door.log" "$gateway" gateway
  stop_inside "$SCRATCH/door-worker.log" "$worker" worker
  kill -TERM "$(sed -n 's/^process //p' "$SCRATCH/door-bulk.log" | head -1)"
  wait "$bulk" || true # its exit code says what ended it
}

check_image() { # CONTAINER: what every image promises
  [ "$(inside "$1" id -u)" != 0 ] || fail "the image runs as root"
  inside "$1" tokenmill --help >/dev/null
  inside "$1" sh -c '! touch /opt/tokenmill/probe 2>/dev/null' || fail "the image's user may change the program"
}

[ "$(id -u)" = 0 ] || fail "run it as root: debootstrap and chroot builds need it"
[ -x "$PYTHON" ] || fail "no .venv here: start me by \`make images-check\`"
need_tools
mkdir -p "$CACHE"
check_compose
import_base
"$PYTHON" -m tests.packaging.pip_settings "$SCRATCH" >"$SCRATCH/volumes"
mapfile -t volumes <"$SCRATCH/volumes"
build tokenmill-producer producer/Dockerfile "${volumes[@]}"
build tokenmill-worker worker/Dockerfile "${volumes[@]}" --build-arg "TORCH_INDEX_URL=${TORCH_INDEX_URL-}"

say "both images: not root, tokenmill --help, program files read-only"
WORKER=$(images from --pull-never tokenmill-worker)
PRODUCER=$(images from --pull-never tokenmill-producer)
check_image "$WORKER"
check_image "$PRODUCER"
inside "$PRODUCER" python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is not None)' || fail "torch in the producer's image"

start_server
check_job echo 'answer["usage"]["completion_tokens"] == 8'
check_job smollm2 '"Paris" in answer["text"]'
check_door
say "images-check passed"
