// The notices below the strip: lost connection, read only, black output, errors, long work.

import { el, fill } from "./dom.js";
import { link } from "./link.js";
import { followStatus, set } from "./state.js";

const dismissed = new Set();
let shown = "";
let now = null;
let lost = false;

export function buildNotices() {
  followStatus((status) => {
    now = status;
    draw();
  });
  for (const event of ["hello", "lost", "access"]) {
    link.addEventListener(event, () => {
      lost = event === "lost" || (lost && event !== "hello");
      draw();
    });
  }
}

function draw() {
  const key = JSON.stringify([lost, link.mayWrite, now?.output, now?.errors, now?.progress, now?.safe_mode, [...dismissed]]);
  if (key === shown) return;
  shown = key;
  const shelf = document.getElementById("notices");
  const asking = shelf.querySelector("input") === document.activeElement && document.activeElement;
  if (asking && !link.mayWrite) return; // never take the field away from someone who types in it
  fill(shelf, lost ? connection() : null, link.mayWrite ? null : readOnly(), black(), work(), errors());
}

function connection() {
  return el("div.notice.bad", {}, el("b", {}, "Connection lost."), " Trying again by itself. The show goes on without this page.");
}

function readOnly() {
  const field = el("input", { type: "password", "aria-label": "Access token", placeholder: "access token", autocomplete: "off" });
  const use = (event) => {
    event.preventDefault();
    link.useToken(field.value);
  };
  return el(
    "form.notice", { onsubmit: use },
    el("span", {}, el("b", {}, "Read only."), " Open the link from the bridge's log, or enter its token."),
    field, el("button", { type: "submit" }, "Unlock"),
  );
}

function black() {
  if (!now || (now.output !== "black" && now.output !== "frozen")) return null;
  const isBlack = now.output === "black";
  const release = () => {
    set("output.black", false);
    set("output.freeze", false);
  };
  return el(
    "div.notice.held", {},
    el("span", {}, el("b", {}, isBlack ? "The output is black." : "The output is frozen."), " The engine goes on behind it."),
    el("button", { type: "button", onclick: release }, "Release"),
  );
}

function work() {
  return (now?.progress ?? []).map((part) => {
    const share = part.total > 0 ? Math.min(1, part.done / part.total) : null;
    const bar = el("progress", { "aria-label": part.stage, max: 1 });
    if (share !== null) bar.value = share;
    const left = part.left_s ? `, ${time(part.left_s)} left` : "";
    const percent = share === null ? "" : ` ${Math.round(share * 100)} %`;
    return el("div.notice.work", {}, el("span", {}, el("b", {}, part.stage), ` ${part.message}`), bar, el("small", {}, percent + left));
  });
}

function errors() {
  const lines = (now?.errors ?? []).filter((line) => !dismissed.has(line)).slice(-2);
  return lines.map((line) => {
    const close = () => {
      dismissed.add(line);
      draw();
    };
    return el(
      "div.notice.bad", {}, el("span", {}, ...errorParts(line)),
      el("button", { type: "button", onclick: close }, "Dismiss"),
    );
  });
}

/** "CODE: what. Next step." with the code set apart. */
export function errorParts(line) {
  const found = /^(SDB-[A-Z0-9]+-[A-Z0-9]+): (.*)$/s.exec(line);
  return found ? [el("code", {}, found[1]), ` ${found[2]}`] : [line];
}

function time(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}
