// How the page talks to the bridge: a WebSocket that comes back by itself, and HTTP beside it.

import { memory } from "./dom.js";

const RETRY_MS = [300, 600, 1000, 2000, 3000];
const SILENCE_MS = 5000; // status comes four times a second; this long without means the line is dead

class Link extends EventTarget {
  constructor() {
    super();
    this.socket = null;
    this.open = false;
    this.tries = 0;
    this.mayWrite = true;
    this.lan = false;
    this.token = takeToken();
    this.heard = 0;
    setInterval(() => this.#watch(), 1000);
    addEventListener("online", () => this.connect());
    document.addEventListener("visibilitychange", () => !document.hidden && !this.open && this.connect());
  }

  connect() {
    clearTimeout(this.timer);
    this.socket?.close();
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/api/live`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.heard = performance.now();
    socket.onopen = () => {
      if (this.token) socket.send(JSON.stringify({ kind: "token", token: this.token }));
    };
    socket.onmessage = (event) => socket === this.socket && this.#hear(event.data);
    socket.onclose = () => socket === this.socket && this.#lost();
  }

  /** Send a message if the line is open; says whether it was. */
  send(message) {
    if (!this.open) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  useToken(token) {
    this.token = token.trim();
    memory.set("token", this.token);
    this.socket?.readyState === WebSocket.OPEN && this.socket.send(JSON.stringify({ kind: "token", token: this.token }));
  }

  async get(path) {
    const headers = this.token ? { authorization: `Bearer ${this.token}` } : {}; // logs are not for everybody
    return answer(await fetch(path, { cache: "no-store", headers }));
  }

  async post(path, body = {}) {
    const headers = { "content-type": "application/json" };
    if (this.token) headers.authorization = `Bearer ${this.token}`;
    return answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
  }

  #hear(content) {
    this.heard = performance.now();
    if (typeof content !== "string") {
      const kind = new Uint8Array(content, 0, 1)[0];
      this.dispatchEvent(new CustomEvent("picture", { detail: { kind, jpeg: content.slice(1) } }));
      this.send({ kind: "seen" });
      return;
    }
    const message = JSON.parse(content);
    if (message.kind === "hello") {
      this.open = true;
      this.tries = 0;
      this.mayWrite = message.may_write;
      this.lan = message.lan;
    } else if (message.kind === "access") {
      this.mayWrite = message.may_write;
    }
    this.dispatchEvent(new CustomEvent(message.kind, { detail: message }));
  }

  #lost() {
    const before = this.open;
    this.open = false;
    if (before) this.dispatchEvent(new CustomEvent("lost"));
    this.timer = setTimeout(() => this.connect(), RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)]);
  }

  #watch() {
    if (document.hidden || performance.now() - this.heard < SILENCE_MS) return;
    if (this.open) this.#lost(); // a phone that slept: the socket looks open and is dead
    this.heard = performance.now();
    if (!this.open) this.connect();
  }
}

/** The answer's JSON; a refusal is thrown with its own sentence. */
async function answer(response) {
  const text = await response.text();
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {
    content = text;
  }
  if (response.ok) return content;
  const refused = content?.error ?? content?.rejected?.[0];
  const error = new Error(refused?.what ? `${refused.what}. ${refused.next_step}` : (refused?.message ?? response.statusText));
  error.code = refused?.code ?? String(response.status);
  throw error;
}

/** The token from the link's fragment, which never leaves the browser, or from an earlier visit. */
function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    memory.set("token", found);
    history.replaceState(null, "", location.pathname);
  }
  return found ?? memory.get("token", "");
}

export const link = new Link();
