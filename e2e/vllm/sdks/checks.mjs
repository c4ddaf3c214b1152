// The unmodified `@anthropic-ai/sdk` and `openai` SDKs for Node against a server: a JSON line a check.
//
// These are the checks of `checks.py`, with the same names and the same answers.
// Usage: `node checks.mjs BASE_URL KEY MODEL [budget DIALECT]`.

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [base, key, model, ...mode] = process.argv.slice(2);
const prompt = "def parse(text: str) -> list[str]:";
const tokens = 12;
const attempts = 40;
const city = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const options = { maxRetries: 0, timeout: 180_000 };
const claude = new Anthropic({ baseURL: base, authToken: key, apiKey: null, ...options });
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: key, ...options });
const turns = [{ role: "user", content: prompt }];
const weather = { name: "weather", description: "of a city", input_schema: city };
const func = { type: "function", name: "weather", description: "of a city", parameters: city };
const message = { model, messages: turns, max_tokens: tokens, temperature: 0 };
const response = { model, input: prompt, max_output_tokens: tokens, temperature: 0 };
const chat = { model, messages: turns, max_tokens: tokens, temperature: 0 };
const long = "x y ".repeat(9_000);

function ofMessage({ usage, content, stop_reason }) {
  const cached = (usage.cache_read_input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0);
  const text = content.map((block) => (block.type === "text" ? block.text : "")).join("");
  return { text, stop: stop_reason, tokens: [usage.input_tokens + cached, usage.output_tokens] };
}

function ofResponse({ usage, output, status }) {
  const parts = output.flatMap((item) => (item.type === "message" ? item.content : []));
  const text = parts.map((part) => (part.type === "output_text" ? part.text : "")).join("");
  return { text, status, tokens: [usage.input_tokens, usage.output_tokens] };
}

function ofChat({ usage, choices: [choice] }) {
  const used = [usage.prompt_tokens, usage.completion_tokens];
  return { text: choice.message.content, stop: choice.finish_reason, tokens: used };
}

const kinds = (types) => types.filter((type, at) => at === 0 || types[at - 1] !== type);
const isCity = (text) => ["Oslo", "Rome"].includes(JSON.parse(text).city);

async function raised(call) {
  try {
    await call();
    return ["nothing", 200];
  } catch (error) {
    if (error.status === undefined) throw error;
    return [error.constructor.name, error.status];
  }
}

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const checks = {
  "messages whole": async () => ofMessage(await claude.messages.create(message)),
  "messages with a system prompt": async () => {
    const system = [{ type: "text", text: "Write code.", cache_control: { type: "ephemeral" } }];
    return ofMessage(await claude.messages.create({ ...message, system }));
  },
  "messages streamed": async () => {
    const events = await collect(await claude.messages.create({ ...message, stream: true }));
    const deltas = events.filter((event) => event.type === "content_block_delta" && event.delta.type === "text_delta");
    const last = events.findLast((event) => event.type === "message_delta");
    return {
      events: kinds(events.map((event) => event.type)),
      text: deltas.map((event) => event.delta.text).join(""),
      output_tokens: last.usage.output_tokens,
    };
  },
  "messages with the streaming helper": async () => {
    let helper = "";
    const stream = claude.messages.stream(message).on("text", (part) => (helper += part));
    return { helper, ...ofMessage(await stream.finalMessage()), helper };
  },
  "messages call a tool": async () => {
    const fields = { ...message, max_tokens: 80, temperature: 1, tools: [weather] };
    for (let attempt = 0; attempt < attempts; attempt++) {
      const found = await claude.messages.create({ ...fields, tool_choice: { type: "tool", name: "weather" } });
      const call = found.content.find((block) => block.type === "tool_use");
      if (call?.input?.city) return { name: call.name, is_city: isCity(JSON.stringify(call.input)) };
    }
    throw new RangeError(`no call in ${attempts} attempts`);
  },
  "messages take the result of a tool": async () => {
    const call = { type: "tool_use", id: "toolu_1", name: "weather", input: { city: "Oslo" } };
    const result = { type: "tool_result", tool_use_id: "toolu_1", content: "rain" };
    const both = [{ role: "assistant", content: [call] }, { role: "user", content: [result] }];
    return ofMessage(await claude.messages.create({ ...message, messages: [...turns, ...both], tools: [weather] }));
  },
  "messages count tokens": async () => ({
    tokens: (await claude.messages.countTokens({ model, messages: turns })).input_tokens,
  }),
  "messages errors": async () => {
    const send = (fields) => raised(() => claude.messages.create({ ...message, ...fields }));
    return {
      "unknown model": await send({ model: "nobody" }),
      "no messages": await send({ messages: [] }),
      "negative limit": await send({ max_tokens: -1 }),
      "too long": await send({ messages: [{ role: "user", content: long }] }),
      "count of an unknown model": await raised(() => claude.messages.countTokens({ model: "nobody", messages: turns })),
    };
  },
  "responses whole": async () => ofResponse(await client.responses.create(response)),
  "responses with instructions and turns": async () => {
    const fields = { ...response, instructions: "Write code.", input: turns, store: false };
    return ofResponse(await client.responses.create(fields));
  },
  "responses streamed": async () => {
    const events = await collect(await client.responses.create({ ...response, stream: true }));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const numbers = events.map((event) => event.sequence_number);
    return {
      events: kinds(events.map((event) => event.type)),
      text: deltas.map((event) => event.delta).join(""),
      rising: numbers.every((number, at) => at === 0 || number > numbers[at - 1]),
      ...ofResponse(events.at(-1).response),
    };
  },
  "responses with the streaming helper": async () => {
    const stream = client.responses.stream(response);
    const events = await collect(stream);
    return { events: kinds(events.map((event) => event.type)), ...ofResponse(await stream.finalResponse()) };
  },
  "responses call a tool": async () => {
    const more = { max_output_tokens: 80, temperature: 1, tools: [func], tool_choice: "required" };
    for (let attempt = 0; attempt < attempts; attempt++) {
      const { output } = await client.responses.create({ ...response, ...more });
      const call = output.find((item) => item.type === "function_call");
      if (call?.arguments.trim().endsWith("}")) return { name: call.name, is_city: isCity(call.arguments) };
    }
    throw new RangeError(`no call in ${attempts} attempts`);
  },
  "responses take the result of a tool": async () => {
    const call = { type: "function_call", call_id: "call_1", name: "weather", arguments: '{"city":"Oslo"}' };
    const result = { type: "function_call_output", call_id: "call_1", output: "rain" };
    const fields = { ...response, input: [...turns, call, result], tools: [func] };
    return ofResponse(await client.responses.create(fields));
  },
  "responses follow a json schema": async () => {
    const format = { type: "json_schema", name: "city", schema: city, strict: true };
    const found = await client.responses.create({ ...response, max_output_tokens: 60, text: { format } });
    return { is_city: isCity(found.output_text) };
  },
  "responses are retrieved by id": async () => {
    const made = await client.responses.create({ ...response, store: true });
    const found = await client.responses.retrieve(made.id);
    return { same: found.id === made.id, ...ofResponse(found) };
  },
  "responses continue an earlier one": async () => {
    const made = await client.responses.create({ ...response, store: true });
    const fields = { ...response, previous_response_id: made.id, input: "go on" };
    return ofResponse(await client.responses.create(fields));
  },
  "responses are cancelled": async () => {
    const fields = { ...response, max_output_tokens: 3_000, background: true, store: true, ignore_eos: true };
    const made = await client.responses.create(fields);
    return { status: (await client.responses.cancel(made.id)).status };
  },
  "responses errors": async () => {
    const send = (fields) => raised(() => client.responses.create({ ...response, ...fields }));
    return {
      "unknown model": await send({ model: "nobody" }),
      "too long": await send({ input: long }),
      "unknown id": await raised(() => client.responses.retrieve("resp_nobody")),
      "cancel of an unknown id": await raised(() => client.responses.cancel("resp_nobody")),
      "unknown earlier id": await send({ previous_response_id: "resp_nobody" }),
    };
  },
  "chat whole": async () => ofChat(await client.chat.completions.create(chat)),
  "chat streamed": async () => {
    const fields = { ...chat, stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client.chat.completions.create(fields));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    return { text, output_tokens: chunks.at(-1).usage.completion_tokens };
  },
  "chat follows a json schema": async () => {
    const form = { type: "json_schema", json_schema: { name: "city", schema: city, strict: true } };
    const found = await client.chat.completions.create({ ...chat, max_tokens: 60, response_format: form });
    return { is_city: isCity(found.choices[0].message.content) };
  },
  "chat errors": async () => {
    const send = (fields) => raised(() => client.chat.completions.create({ ...chat, ...fields }));
    return {
      "unknown model": await send({ model: "nobody" }),
      "too long": await send({ messages: [{ role: "user", content: long }] }),
      temperature: await send({ temperature: -1 }),
    };
  },
};

async function spend(dialect) {
  const send = {
    messages: async () => ofMessage(await claude.messages.create(message)),
    responses: async () => ofResponse(await client.responses.create(response)),
    chat: async () => ofChat(await client.chat.completions.create(chat)),
  }[dialect];
  let spent = 0;
  for (let answered = 0; answered < 100; answered++) {
    try {
      const [input, output] = (await send()).tokens;
      spent += input + output;
    } catch (error) {
      if (error.status === undefined) throw error;
      const type = error.error?.error?.type ?? error.error?.type ?? null;
      const refusal = [error.constructor.name, error.status, type];
      return { answered, tokens: spent, raised: refusal, retry_after: error.headers.has("retry-after") };
    }
  }
  return { answered: 100, tokens: spent, raised: ["nothing", 200, null], retry_after: false };
}

if (mode.length) {
  console.log(JSON.stringify({ name: `budget: ${mode[1]}`, said: await spend(mode[1]) }));
} else {
  for (const [name, check] of Object.entries(checks)) {
    let line;
    try {
      line = { name, said: await check() };
    } catch (error) {
      const failed = [error.constructor.name, error.status ?? null];
      line = { name, failed, why: String(error.message ?? error).slice(0, 300) };
    }
    console.log(JSON.stringify(line));
  }
}
