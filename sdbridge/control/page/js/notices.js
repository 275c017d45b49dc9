// The notices below the strip: lost connection, read only, black output, errors, long work.

import { el, fill } from "./dom.js";
import { link } from "./link.js";
import { followStatus, set } from "./state.js";

const BANNER_S = 60; // an error that is over leaves the top of the page; Watch keeps it
const SILENT_MS = 3000; // a source may take so long to be found before anybody need know
const dismissed = new Set(); // numbers of tellings: the same error told again is shown again
const silentSince = new Map(); // role of an input -> when the page first saw it without a source
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
  const key = JSON.stringify([lost, link.mayWrite, now?.output, now?.progress, silent(), banners().map((one) => one.number)]);
  if (key === shown) return;
  shown = key;
  const shelf = document.getElementById("notices");
  const asking = shelf.querySelector("input") === document.activeElement && document.activeElement;
  if (asking && !link.mayWrite) return; // never take the field away from someone who types in it
  fill(shelf, lost ? connection() : null, link.mayWrite ? null : readOnly(), black(), missing(), work(), errors());
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

/** Inputs that have a source to wait for and no picture from it. */
function silent() {
  const inputs = now?.inputs ?? [];
  for (const { role, connected } of inputs) {
    if (connected) silentSince.delete(role);
    else if (!silentSince.has(role)) silentSince.set(role, performance.now());
  }
  return inputs.filter(({ role }) => performance.now() - silentSince.get(role) > SILENT_MS).map(({ role, line }) => [role, line]);
}

function missing() {
  const inputs = silent();
  if (!inputs.length) return null;
  const roles = inputs.map(([role]) => role).join(" and ");
  const lines = inputs.map(([, line]) => line).join("; ");
  return el("div.notice.held", {}, el("span", {}, el("b", {}, `No picture comes in: ${roles}.`), ` It is looked for all the time. ${lines.charAt(0).toUpperCase()}${lines.slice(1)}.`));
}

/** The newest errors worth a banner: young, or the engine does not stream; and not dismissed. */
function banners() {
  const sound = now?.state === "streaming"; // black, frozen or held by a lost source: they have words of their own
  return (now?.errors_told ?? []).filter((one) => !dismissed.has(one.number) && (!sound || one.age_s < BANNER_S)).slice(-2);
}

function errors() {
  return banners().map((one) => {
    const close = () => {
      dismissed.add(one.number);
      draw();
    };
    return el(
      "div.notice.bad", {}, el("span", {}, el("time", {}, clock(one.age_s)), " ", ...errorParts(one.text)),
      el("button", { type: "button", onclick: close }, "Dismiss"),
    );
  });
}

/** The time of day of what is so many seconds old. */
export function clock(age_s) {
  return new Date(Date.now() - 1000 * age_s).toLocaleTimeString([], { hour12: false });
}

/** "CODE: what. Next step." with the code set apart. */
export function errorParts(line) {
  const found = /^(SDB-[A-Z0-9]+-[A-Z0-9]+): (.*)$/s.exec(line);
  return found ? [el("code", {}, found[1]), ` ${found[2]}`] : [line];
}

function time(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}
