// OpenAI's npm client against a portal: node openai_client.mjs BASE_URL KEY MODEL
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];

const models = [];
for await (const one of client.models.list()) models.push(one.id);

const whole = await client.chat.completions.create({ model, messages, max_tokens: 8 });

let text = "";
let usage = null;
const stream = await client.chat.completions.create({
  model, messages, max_tokens: 8, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const completion = await client.completions.create({ model, prompt: "Once upon", max_tokens: 8 });
const response = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 16 });

let refusal = "";
try {
  await client.chat.completions.create({ model: "nothing", messages });
} catch (error) {
  refusal = `${error.constructor.name} ${error.code}`;
}

console.log(JSON.stringify({
  models, text, refusal,
  whole: whole.choices[0].message.content,
  tokens: usage.completion_tokens,
  completion: completion.choices[0].text,
  response: response.output_text,
}));
