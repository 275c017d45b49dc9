// What the page knows: the table's rows, every value, the status; and how a value is sent.

import { toast } from "./dom.js";
import { link } from "./link.js";

const SEND_EVERY_MS = 33;
const POLL_EVERY_MS = 1500; // only while the socket is down

export const rows = new Map(); // name -> row of the table
export const values = new Map(); // name -> value now
export let status = {};

const listeners = new Map(); // name -> set of functions(value, fromElsewhere)
const statusListeners = new Set();
const waiting = new Map(); // name -> value not sent yet
const underway = new Map(); // name -> id of the newest sending that is not answered
const named = new Map(); // id -> names sent under it
let nextId = 1;
let timer = 0;
let lastSent = 0;

/** Fetch the table; afterwards rows and values are complete. */
export async function loadTable() {
  const listed = await link.get("/api/parameters");
  for (const row of listed.parameters) {
    rows.set(row.name, row);
    if ("value" in row) adopt(row.name, row.value);
  }
  return listed.schema;
}

/** Call back with every new value of a parameter, and at once with the present one. */
export function follow(name, listener) {
  if (!listeners.has(name)) listeners.set(name, new Set());
  listeners.get(name).add(listener);
  if (values.has(name)) listener(values.get(name));
  return () => listeners.get(name)?.delete(listener);
}

/** Call back with every status. */
export function followStatus(listener) {
  statusListeners.add(listener);
  return () => statusListeners.delete(listener);
}

/** Set a parameter from here: shown at once, sent at most 30 times a second. */
export function set(name, value) {
  if (!link.mayWrite) {
    toast("Read only. Enter the access token first.", "bad");
    return;
  }
  values.set(name, value);
  tell(name, value);
  waiting.set(name, value);
  if (!timer) timer = setTimeout(flush, Math.max(0, lastSent + SEND_EVERY_MS - performance.now()));
}

/** Fire a trigger, at once and as often as asked. */
export function fire(name) {
  flush();
  transmit({ [name]: true });
}

function flush() {
  clearTimeout(timer);
  timer = 0;
  if (!waiting.size) return;
  const content = Object.fromEntries(waiting);
  waiting.clear();
  lastSent = performance.now();
  transmit(content);
}

function transmit(content) {
  const id = nextId++;
  named.set(id, Object.keys(content));
  for (const name of named.get(id)) underway.set(name, id);
  if (link.send({ kind: "set", id, values: content })) return;
  link
    .post("/api/parameters", { values: content })
    .then((outcome) => settle({ id, values: {}, ...outcome }))
    .catch((error) => {
      settle({ id, values: {}, rejected: [] });
      toast(error.message, "bad");
    });
}

/** The bridge has answered a sending: what it made of the values is what we show. */
function settle({ id, values: now = {}, rejected = [] }) {
  for (const name of named.get(id) ?? []) {
    if (underway.get(name) !== id) continue; // a newer one is on its way
    underway.delete(name);
    if (name in now) adopt(name, now[name]);
  }
  named.delete(id);
  for (const refusal of rejected) toast(refusal.message, "bad");
}

function adopt(name, value) {
  if (waiting.has(name) || underway.has(name)) return; // our own hand is newer
  if (values.get(name) === value) return;
  values.set(name, value);
  tell(name, value);
}

function tell(name, value) {
  for (const listener of listeners.get(name) ?? []) listener(value);
}

function takeStatus(now) {
  status = now;
  for (const listener of statusListeners) listener(now);
}

link.addEventListener("hello", ({ detail }) => {
  underway.clear(); // answers to what was sent on the old line will not come
  named.clear();
  for (const [name, value] of Object.entries(detail.values)) adopt(name, value);
});
link.addEventListener("changes", ({ detail }) => {
  for (const [name, value] of Object.entries(detail.values)) adopt(name, value);
});
link.addEventListener("outcome", ({ detail }) => settle(detail));
link.addEventListener("refused", ({ detail }) => {
  settle({ id: detail.id });
  toast(`${detail.error.what}. ${detail.error.next_step}`, "bad");
});
link.addEventListener("status", ({ detail }) => takeStatus(detail.status));

// Where something between us and the bridge blocks WebSockets, plain HTTP still serves.
setInterval(async () => {
  if (link.open || document.hidden) return;
  try {
    takeStatus(await link.get("/api/status"));
    const listed = await link.get("/api/parameters");
    for (const row of listed.parameters) if ("value" in row) adopt(row.name, row.value);
  } catch {
    // the bridge is away; the line says so
  }
}, POLL_EVERY_MS);
