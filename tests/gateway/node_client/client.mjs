// Asks a gateway through the openai package, whole and streamed; prints both texts as JSON. node client.mjs BASE_URL
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = {
  model: "echo",
  messages: [{ role: "user", content: "Why is the sky blue?" }],
  max_tokens: 20,
  temperature: 0,
};

const whole = await client.chat.completions.create(asked);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
let refused = "";
try {
  await client.chat.completions.create({ ...asked, model: "gpt-9" });
} catch (error) {
  refused = error instanceof OpenAI.NotFoundError ? error.code : String(error);
}
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    tokens: whole.usage.completion_tokens,
    refused,
  }),
);
