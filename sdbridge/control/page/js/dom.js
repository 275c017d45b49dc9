// How elements are made: el("button.big", {onclick, "aria-label": "Go"}, "Go").

/** An element from "tag.class.class", properties (on… are listeners, null is left out) and children. */
export function el(what, props = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the symbols in index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A round button with an icon; its label is what a screen reader says and a mouse shows. */
export function iconButton(name, label, onclick, classes = "") {
  return el(`button.icon${classes}`, { type: "button", "aria-label": label, title: label, onclick }, icon(name));
}

/** Replace all children. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
}

/** Set text only when it differs, so that nothing is laid out again for nothing. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A short message at the lower edge; kind is "good" or "bad". */
export function toast(text, kind = "good") {
  const note = el(`p.toast.${kind}`, {}, text);
  const shelf = document.getElementById("toasts");
  while (shelf.children.length > 2) shelf.firstChild.remove();
  shelf.append(note);
  setTimeout(() => note.remove(), kind === "bad" ? 9000 : 2500);
}

/** Copy, also over plain http from a phone, where the clipboard API is not given. */
export async function copy(text, what = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(what);
}

/** Keep something for the next visit; a browser that forbids it just forgets. */
export const memory = {
  get(key, otherwise) {
    try {
      const kept = localStorage.getItem(`sdbridge.${key}`);
      return kept === null ? otherwise : JSON.parse(kept);
    } catch {
      return otherwise;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`sdbridge.${key}`, JSON.stringify(value));
    } catch {
      // private windows and full disks: nothing is lost but comfort
    }
  },
};
