// A producer in another language: ioredis, one XADD, then XREAD until the final entry. Knows nothing of tokenmill's code.
//
//   node producer.mjs "Why is the sky blue?" 64
//
// Exit codes: 0 answered, 1 the request failed or was cancelled, 2 wrong usage, 4 no final entry in time.

import process from "node:process";
import Redis from "ioredis";

const QUEUE = process.env.TOKENMILL_QUEUE ?? "default";
const TIMEOUT_MS = Number(process.env.TIMEOUT_MS ?? 120_000);
const BLOCK_MS = 5_000;
const FINAL = new Set(["done", "error", "cancelled", "expired"]);

// Adds one request to the normal lane; resolves to the key of its answer.
async function enqueue(server, body) {
  const entryId = await server.xadd(`tm:{${QUEUE}.0}:in:2`, "*", "body", JSON.stringify(body));
  return `tm:{${QUEUE}.0}:r:2-${entryId}`; // no id was given, so the request is called <lane>-<entry id>
}

// The entries of a result key as they come, the final one last. Repeats nothing and loses nothing.
async function* follow(server, key) {
  const deadline = Date.now() + TIMEOUT_MS;
  for (let after = "0"; Date.now() < deadline; ) {
    const reply = await server.xread("BLOCK", BLOCK_MS, "STREAMS", key, after);
    for (const [entryId, flat] of reply?.[0][1] ?? []) {
      after = entryId;
      const fields = fieldsOf(flat);
      yield fields;
      if (FINAL.has(fields.type)) return;
    }
  }
  throw new Error(`no final entry in ${key} within ${TIMEOUT_MS} ms: is a worker running?`);
}

// Redis sends a flat list: name, value, name, value.
function fieldsOf(flat) {
  const fields = {};
  for (let i = 0; i < flat.length; i += 2) fields[flat[i]] = flat[i + 1];
  return fields;
}

async function run(server, prompt, maxTokens) {
  const messages = [{ role: "user", content: prompt }];
  const key = await enqueue(server, { messages, max_tokens: maxTokens });
  for await (const entry of follow(server, key)) {
    if (entry.type === "delta") process.stdout.write(entry.text);
    else if (entry.type === "reset") process.stdout.write("\n-- starts again --\n");
    else return report(entry, key);
  }
}

function report(final, key) {
  process.stdout.write("\n");
  if (final.type !== "done") {
    console.error(`${final.type}: ${final.error ?? ""}`);
    return 1;
  }
  console.error(`${final.finish_reason}, ${JSON.parse(final.usage).completion_tokens} tokens, ${key}`);
  return 0;
}

const [prompt, maxTokens = "64"] = process.argv.slice(2);
if (!prompt) {
  console.error('usage: node producer.mjs PROMPT [MAX_TOKENS]');
  process.exit(2);
}
const server = new Redis(process.env.TOKENMILL_REDIS_URL ?? "redis://localhost:6379/0");
try {
  process.exitCode = await run(server, prompt, Number(maxTokens));
} catch (error) {
  console.error(error.message);
  process.exitCode = 4;
} finally {
  server.disconnect();
}
