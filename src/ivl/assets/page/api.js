// What the page asks of its own server. Nothing else is ever asked.

export class Refusal extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

function headers(key, more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function request(path, key, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(key, options.headers) });
  if (answer.ok) return answer;
  let message = `The server answered with status ${answer.status}.`;
  try {
    const body = await answer.json();
    message = body.error.message ?? message;
  } catch { /* no JSON: the status has to do */ }
  throw new Refusal(message, answer.status);
}

export async function models(key) {
  return (await (await request("/v1/models", key)).json()).data.map((model) => model.id);
}

export async function grid(picture, maxTiles, model, key) {
  const query = new URLSearchParams({ width: picture.width, height: picture.height, model });
  if (maxTiles) query.set("max_tiles", maxTiles);
  return (await request(`/ivl/grid?${query}`, key)).json();
}

export async function pages(file, key) {
  const answer = await request("/ivl/pages", key, { method: "POST", body: file });
  return (await answer.json()).pages;
}

// Calls onPiece with every new text; resolves to {reason, usage, timings}.
export async function ask(body, key, signal, onPiece) {
  const answer = await request("/v1/chat/completions", key, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  const result = { reason: null, usage: null, timings: null };
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) take(event, result, onPiece);
  }
  if (!result.reason) throw new Refusal("The connection ended before the answer did.", 0);
  return result;
}

function take(event, result, onPiece) {
  const data = event.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
  if (!data || data === "[DONE]") return;
  const chunk = JSON.parse(data);
  if (chunk.error) throw new Refusal(chunk.error.message, 0);
  const choice = chunk.choices[0];
  if (choice?.delta?.content) onPiece(choice.delta.content);
  if (choice?.finish_reason) result.reason = choice.finish_reason;
  if (chunk.usage) { result.usage = chunk.usage; result.timings = chunk.timings; }
}
