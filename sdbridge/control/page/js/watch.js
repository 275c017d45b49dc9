// The view Watch: all numbers, errors with their next step, OSC as it comes, the log, diagnostics.

import { copy, el, fill, toast } from "./dom.js";
import { link } from "./link.js";
import { clock, errorParts } from "./notices.js";
import { followStatus } from "./state.js";

const LOOK_AGAIN_MS = 1000;

export function buildWatch() {
  const numbers = el("dl.all-numbers");
  const errors = el("div.errors");
  const osc = el("div.osc-log", { role: "log", "aria-label": "OSC messages", tabindex: 0 });
  const log = el("pre.log", { role: "log", "aria-label": "Log", tabindex: 0 });
  const diagnostics = async () => {
    try {
      await copy(await link.get("/api/diagnostics"), "Diagnostics copied, without secrets");
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  fill(
    document.getElementById("watch"),
    el("section.card", {}, el("div.card-head", {}, el("h2", {}, "Numbers")), numbers),
    el(
      "section.card", {},
      el("div.card-head", {}, el("h2", {}, "Errors"), el("button.quiet", { type: "button", onclick: diagnostics }, "Copy diagnostics")),
      errors,
    ),
    el("section.card", {}, el("div.card-head", {}, el("h2", {}, "OSC in")), osc),
    el("section.card.wide", {}, el("div.card-head", {}, el("h2", {}, "Log")), log),
  );
  followStatus((now) => {
    markTab(now.errors_told ?? []);
    if (document.body.dataset.view !== "watch") return;
    drawNumbers(numbers, now);
    drawErrors(errors, now.errors_told ?? []);
  });
  setInterval(() => document.body.dataset.view === "watch" && !document.hidden && load(osc, log), LOOK_AGAIN_MS);
  document.addEventListener("view", ({ detail }) => detail === "watch" && load(osc, log));
}

async function load(osc, log) {
  try {
    const { lines } = await link.get("/api/log?count=300");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
    const text = lines.join("\n");
    if (log.textContent !== text) log.textContent = text;
    if (atEnd) log.scrollTop = log.scrollHeight;
  } catch {
    return; // the line at the top says that the connection is lost
  }
  try {
    const { messages } = await link.get("/api/osc-log");
    const key = JSON.stringify(messages.at(-1) ?? null) + messages.length;
    if (osc.dataset.key === key) return;
    osc.dataset.key = key;
    fill(osc, messages.length ? messages.toReversed().map(message) : el("p.empty", {}, "No OSC message has come yet."));
  } catch (error) {
    fill(osc, el("p.empty", {}, error.message));
  }
}

function message(one) {
  const time = new Date(one.at * 1000).toLocaleTimeString([], { hour12: false });
  const values = one.args.map((value) => (typeof value === "number" ? Number(value.toFixed(4)) : JSON.stringify(value))).join(" ");
  const why = one.reason.replace(/^SDB-\S+: /, "").split(". ")[0];
  return el(
    `div.osc-line.${one.verdict}`, { title: one.reason },
    el("time", {}, time), el("code", {}, `${one.address} ${values}`),
    el("span", {}, why ? `${one.verdict}: ${why}` : one.verdict), el("small", {}, one.sender),
  );
}

function drawNumbers(list, now) {
  const minutes = Math.floor(now.uptime_s / 60);
  const facts = [
    ["Engine", `${now.state.replace("_", " ")}${now.engine_line ? `, ${now.engine_line}` : ""}`],
    ["Output", now.output],
    ["Model", now.model || "from the config"],
    ["Device", now.device || "unknown"],
    ["Frames in / out", `${now.frames_in} / ${now.frames_out}`],
    ["Dropped / held", `${now.dropped} / ${now.held}`],
    ["Rate in / painted / sent", `${now.fps_in.toFixed(1)} / ${now.fps_new.toFixed(1)} / ${now.fps.toFixed(1)} fps`],
    ["Latency p50 / p99", `${now.latency_ms.p50.toFixed(1)} / ${now.latency_ms.p99.toFixed(1)} ms`],
    ["Engine tick", `${now.tick_ms.toFixed(1)} ms`],
    ...Object.entries(now.parts_ms ?? {}).map(([part, ms]) => [`· ${part}`, `${ms.toFixed(1)} ms`]),
    ["GPU memory", now.vram_mb ? `${(now.vram_mb / 1024).toFixed(2)} of ${(now.vram_total_mb / 1024).toFixed(1)} GB` : "none in use"],
    ["Revision applied", `${now.applied_revision} of ${now.revision}`],
    ["Restarts", String(now.restarts)],
    ["Up for", minutes < 120 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`],
    ["Version", now.version],
  ];
  if (now.unused?.length) facts.push(["Unused by this model", now.unused.join(", ")]);
  const key = JSON.stringify(facts);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  fill(list, facts.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))));
}

function drawErrors(node, told) {
  const key = JSON.stringify(told.map((one) => one.number));
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  const line = (one) => el("p.error", {}, el("time", {}, clock(one.age_s)), " ", ...errorParts(one.text));
  fill(node, told.length ? told.toReversed().map(line) : el("p.empty", {}, "No errors."));
}

let read = 0; // number of the newest error that was on this view

/** How many errors came that nobody has looked at here, on the tab itself. */
function markTab(told) {
  const newest = told.at(-1)?.number ?? 0;
  if (newest < read) read = 0; // the bridge was started anew
  if (document.body.dataset.view === "watch") read = newest;
  const tab = document.querySelector(".tabs [data-view=watch]");
  const unread = told.filter((one) => one.number > read).length;
  tab.dataset.unread = unread || "";
  tab.setAttribute("aria-label", unread ? `Watch, ${unread} error${unread > 1 ? "s" : ""} not looked at` : "Watch");
}
