import * as api from "/page/api.js";
import * as history from "/page/history.js";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const CURRENT = "ivl.current";
const KEPT = ["max-tiles", "max-tokens", "temperature", "system", "schema"];

let chat = fresh();
let waiting = [];        // pictures of the next message: {url, width, height, name, grid}
let running = null;      // the AbortController of the answer that is being written

function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", updated: 0, messages: [] };
}

// Elements are made, never parsed: what a model or a file says stays text.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

const key = () => $("key").value.trim();
const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));

// Pictures

function figure(picture, onRemove) {
  const image = make("img", { src: picture.url, alt: picture.name || "picture" });
  const frame = make("div", { class: "frame" }, image);
  const caption = make("figcaption");
  if (picture.grid) {
    const { columns, rows, num_tiles: tiles, num_tokens: tokens } = picture.grid;
    const lines = document.createElementNS(SVG, "svg");
    lines.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    lines.setAttribute("preserveAspectRatio", "none");
    lines.setAttribute("aria-hidden", "true");
    const line = (x1, y1, x2, y2) => {
      const one = document.createElementNS(SVG, "line");
      Object.entries({ x1, y1, x2, y2 }).forEach(([name, value]) => one.setAttribute(name, value));
      lines.append(one);
    };
    for (let x = 1; x < columns; x++) line(x, 0, x, rows);
    for (let y = 1; y < rows; y++) line(0, y, columns, y);
    frame.append(lines);
    const thumbnail = tiles > columns * rows ? " and a thumbnail" : "";
    const cut = columns * rows === 1 ? "1 tile" : `${columns} × ${rows} tiles`;
    caption.textContent = `${cut}${thumbnail}, ${tokens} tokens`;
  }
  const whole = make("figure", {}, frame, caption);
  if (onRemove) {
    const label = `Remove ${picture.name || "picture"}`;
    frame.append(make("button", {
      type: "button", class: "remove", title: label, "aria-label": label, onclick: onRemove,
    }, "×"));
  }
  return whole;
}

function showWaiting() {
  $("pictures").replaceChildren(...waiting.map((picture) => figure(picture, () => {
    waiting = waiting.filter((other) => other !== picture);
    refreshGrids();
  })));
}

// The images of a message share its tiles.
async function refreshGrids() {
  showWaiting();
  const shown = waiting;
  const most = number("max-tiles");
  try {
    await Promise.all(shown.map(async (picture) => {
      const whole = most ?? (await api.grid(picture, undefined, $("model").value, key())).max_tiles;
      const share = Math.max(1, Math.floor(whole / shown.length));
      picture.grid = await api.grid(picture, share, $("model").value, key());
    }));
  } catch (error) {
    fail(error);
  }
  if (shown === waiting) showWaiting();
}

function readUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function measure(url, name) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    throw new Error(`${name} is no picture that this browser can show.`);
  }
  return { url, name, width: image.naturalWidth, height: image.naturalHeight };
}

async function add(files) {
  for (const file of files) {
    try {
      if (file.type === "application/pdf") {
        say(`Reading ${file.name}`);
        const urls = await api.pages(file, key());
        const shown = urls.map((url, index) => measure(url, `${file.name}, page ${index + 1}`));
        waiting = [...waiting, ...await Promise.all(shown)];
      } else {
        waiting = [...waiting, await measure(await readUrl(file), file.name)];
      }
      say("");
    } catch (error) {
      fail(error);
    }
  }
  await refreshGrids();
  $("question").focus();
}

// The conversation

function turn(message, index) {
  const mine = message.role === "user";
  const text = make("p", { class: "text" });
  text.textContent = message.text;
  const box = make("article", { class: `turn ${message.role}${message.error ? " error" : ""}` },
    make("p", { class: "who" }, mine ? "You" : "Model"));
  if (message.pictures?.length) {
    box.append(make("div", { class: "strip" }, ...message.pictures.map((p) => figure(p))));
  }
  box.append(text);
  if (!mine) {
    const foot = make("div", { class: "foot" });
    if (message.facts) foot.append(make("span", { class: "facts" }, message.facts));
    if (!running && index === chat.messages.length - 1) {
      foot.append(make("button", { type: "button", class: "retry", onclick: retry }, "Retry"));
    }
    if (message.text && !running) {
      foot.append(make("button", {
        type: "button", onclick: () => navigator.clipboard?.writeText(message.text),
      }, "Copy"));
    }
    box.append(foot);
  }
  return box;
}

function show() {
  const turns = chat.messages.map(turn);
  $("log").replaceChildren(...(turns.length ? turns : [welcome]));
  $("log").scrollTop = $("log").scrollHeight;
}
const welcome = $("welcome");

function facts(result, seconds) {
  if (result.reason === "stopped") return "stopped";
  const { usage, timings } = result;
  const written = usage.completion_tokens;
  const parts = [];
  if (timings.num_tiles) parts.push(timings.num_tiles === 1 ? "1 tile" : `${timings.num_tiles} tiles`);
  parts.push(`${usage.prompt_tokens} tokens read`);
  const cached = usage.prompt_tokens_details.cached_tokens;
  if (cached) parts.push(`${cached} of them known`);
  parts.push(`first word after ${timings.first_token_s.toFixed(2)} s`);
  const rate = (written - 1) / (timings.total_s - timings.first_token_s);
  parts.push(`${written} written${Number.isFinite(rate) && rate > 0 ? ` at ${rate.toFixed(1)}/s` : ""}`);
  parts.push(`${seconds.toFixed(1)} s in all`);
  if (result.reason === "length") parts.push("cut off at the longest answer");
  return parts.join(", ");
}

function bodyOf(messages) {
  const system = $("system").value.trim();
  const body = {
    model: $("model").value,
    messages: messages.filter((m) => !m.error).map((m) => ({
      role: m.role,
      content: m.pictures?.length
        ? [...m.pictures.map((p) => ({ type: "image_url", image_url: { url: p.url } })),
          { type: "text", text: m.text }]
        : m.text,
    })),
    max_tiles: number("max-tiles"),
    max_completion_tokens: number("max-tokens"),
    temperature: number("temperature"),
  };
  if (system) body.messages.unshift({ role: "system", content: system });
  const schema = $("schema").value.trim();
  if (schema) {
    let parsed;
    try {
      parsed = JSON.parse(schema);
    } catch (error) {
      throw new Error(`The JSON schema is no JSON: ${error.message}`);
    }
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed } };
  }
  return body;
}

async function answer() {
  let body;
  try {
    body = bodyOf(chat.messages);
  } catch (error) {
    fail(error);
    return;
  }
  const began = performance.now();
  const message = { role: "assistant", text: "" };
  running = new AbortController();
  chat.messages.push(message);
  show();
  const box = $("log").lastElementChild;
  const text = box.querySelector(".text");
  box.classList.add("writing");
  buttons();
  say("The model is looking.");
  try {
    const result = await api.ask(body, key(), running.signal, (piece) => {
      if (!message.text) say("The model is writing.");
      message.text += piece;
      const log = $("log");
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      text.textContent = message.text;
      if (atEnd) log.scrollTop = log.scrollHeight;
    });
    message.facts = facts(result, (performance.now() - began) / 1000);
    say("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") {
      message.facts = "stopped";
      say("Stopped.");
    } else {
      message.error = true;
      message.text = error.message;
      fail(error);
    }
  }
  running = null;
  buttons();
  show();
  await keep();
  $("question").focus();
}

async function send(event) {
  event.preventDefault();
  const text = $("question").value.trim();
  if (running || (!text && !waiting.length)) return;
  chat.messages.push({ role: "user", text: text || "Read all the text in the image.", pictures: waiting });
  chat.title ||= text.slice(0, 80) || waiting[0].name;
  waiting = [];
  $("question").value = "";
  grow();
  showWaiting();
  await answer();
}

async function retry() {
  if (running) return;
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  await answer();
}

function fail(error) {
  say(error.message, true);
  if (error.status === 401) {
    $("options").open = true;
    $("key").focus();
  }
}

function buttons() {
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

// History

async function keep() {
  chat.updated = Date.now();
  try {
    await history.save(chat);
    localStorage.setItem(CURRENT, chat.id);
    await list();
  } catch (error) {
    say(`This browser does not keep the conversation: ${error?.message ?? error}`, true);
  }
}

async function list() {
  const chats = await history.all();
  $("no-chats").hidden = chats.length > 0;
  $("chats").replaceChildren(...chats.map((one) => make("li", {},
    make("button", { type: "button", onclick: () => begin(one) }, one.title || "Untitled"),
    make("button", {
      type: "button", "aria-label": `Delete ${one.title}`, title: "Delete",
      onclick: async () => {
        await history.remove(one.id);
        if (one.id === chat.id) begin(fresh());
        await list();
      },
    }, "×"))));
}

function begin(next) {
  running?.abort();
  chat = next;
  localStorage.setItem(CURRENT, chat.id);
  $("history").open = false;
  say("");
  show();
  $("question").focus();
}

// The rest of the page

function grow() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, 192)}px`;
}

async function loadModels() {
  try {
    const names = await api.models(key());
    $("model").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    say("");
  } catch (error) {
    fail(error);
  }
}

function listen() {
  $("ask").addEventListener("submit", send);
  $("stop").addEventListener("click", () => running?.abort());
  $("new").addEventListener("click", () => begin(fresh()));
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", async () => {
    const files = [...$("files").files];
    $("files").value = "";
    await add(files);
  });
  $("question").addEventListener("input", grow);
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  $("max-tiles").addEventListener("change", refreshGrids);
  $("key").addEventListener("change", () => {
    sessionStorage.setItem("ivl.key", key());
    loadModels();
  });
  for (const id of KEPT) {
    $(id).value = localStorage.getItem(`ivl.${id}`) ?? "";
    $(id).addEventListener("change", () => localStorage.setItem(`ivl.${id}`, $(id).value));
  }
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if ($("history").open) $("history").open = false;
    else running?.abort();
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) { event.preventDefault(); add(files); }
  });
  let depth = 0;
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (carries(event)) { depth++; $("drop").hidden = false; } });
  addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); $("drop").hidden = depth === 0; });
  addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    add([...event.dataTransfer.files]);
  });
}

async function start() {
  $("key").value = sessionStorage.getItem("ivl.key") ?? "";
  listen();
  await loadModels();
  try {
    await list();
    const last = localStorage.getItem(CURRENT);
    const found = (await history.all()).find((one) => one.id === last);
    if (found) begin(found);
  } catch { /* a browser that keeps nothing: the page works without */ }
  $("question").focus();
  document.body.dataset.ready = "yes";
}

start();
