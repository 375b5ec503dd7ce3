// Responses through the openai package: background, streamed, resumed, cancelled; prints what it found as JSON.
// node responses.mjs BASE_URL
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = { model: "echo", input: "Why is the sky blue?", max_output_tokens: 20, temperature: 0 };

const textOf = (events) =>
  events
    .filter((event) => event.type === "response.output_text.delta")
    .map((event) => event.delta)
    .join("");

async function eventsOf(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const whole = await client.responses.create(asked);
const streamed = await eventsOf(await client.responses.create({ ...asked, stream: true }));
const made = await client.responses.create({ ...asked, background: true });
const first = await eventsOf(await client.responses.retrieve(made.id, { stream: true }));
const rest = await eventsOf(await client.responses.retrieve(made.id, { stream: true, starting_after: 5 }));
const long = await client.responses.create({ ...asked, max_output_tokens: 100000, background: true });
const cancelled = await client.responses.cancel(long.id);
console.log(
  JSON.stringify({
    whole: whole.output_text,
    streamed: textOf(streamed),
    tokens: whole.usage.output_tokens,
    background: (await client.responses.retrieve(made.id)).output_text,
    resumed: JSON.stringify(rest) === JSON.stringify(first.slice(6)),
    cancelled: cancelled.status,
  }),
);
