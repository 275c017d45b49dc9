// The model: which one runs, which are here, which can be pulled, and how far a pull is.

import { el, fill, say, toast } from "./dom.js";
import { link } from "./link.js";
import { follow, followStatus, rows, set, values } from "./state.js";

const LOOK_AGAIN_MS = 1000; // while something is being pulled

export function buildModels(card) {
  const now = el("p.texture-state.connected");
  const field = el("input", { type: "text", "aria-label": "Model folder, file or id", placeholder: "folder, .safetensors file or catalog id", autocomplete: "off", spellcheck: "false" });
  const list = el("div.models");
  const use = (event) => {
    event.preventDefault();
    set("model", field.value.trim());
  };
  follow("model", (name) => document.activeElement !== field && (field.value = name));
  followStatus(({ model, state }) => {
    const name = model.split(/[\\/]/).filter(Boolean).at(-1); // a path's last part says which
    say(now, !name ? "" : state === "streaming" ? `Running ${name}` : `${name} is not running: ${state.replace("_", " ")}`);
    now.classList.toggle("connected", state === "streaming");
  });
  fill(
    card, el("div.card-head", {}, el("h2", {}, "Model")), now,
    el("form.texture-fields", { onsubmit: use }, field, el("button", { type: "submit" }, "Load")), list,
  );
  let timer = 0;
  const load = async () => {
    clearTimeout(timer);
    try {
      const { models } = await link.get("/api/models");
      fill(list, models.toSorted((a, b) => b.here - a.here).map((model) => line(model, load)));
      offer(models);
      if (models.some((model) => model.pulling)) timer = setTimeout(load, LOOK_AGAIN_MS);
    } catch {
      fill(list);
    }
  };
  document.addEventListener("view", ({ detail }) => detail === "connect" && load());
  link.addEventListener("hello", load);
}

/** What is here, as suggestions of the fields that take a file or an id (control.js). */
function offer(models) {
  for (const kind of Object.keys(USE)) {
    const list = document.getElementById(`known-${kind}`) ?? document.body.appendChild(el("datalist", { id: `known-${kind}` }));
    fill(list, models.filter((model) => model.kind === kind && model.here).map((model) => el("option", { value: model.id }, model.summary)));
  }
}

function line(model, again) {
  const pull = async () => {
    try {
      await link.post("/api/models/pull", { id: model.id });
      again();
    } catch (error) {
      toast(error.message, "bad");
    }
  };
  const size = model.size_bytes ? inBytes(model.size_bytes) : "";
  const facts = [model.kind, size, model.licence].filter(Boolean).join(" · ");
  const use = USE[model.kind];
  const button = !model.here
    ? el("button", { type: "button", disabled: Boolean(model.pulling), onclick: pull }, model.pulling ? "Pulling" : "Pull")
    : use ? el("button", { type: "button", onclick: () => use(model.id) }, "Load") : el("span.small", {}, "here");
  const bar = el("progress", { max: 1, "aria-label": `Pulling ${model.id}` });
  if (model.pulling?.total) bar.value = model.pulling.done / model.pulling.total;
  const left = model.pulling?.left_s ? ` · ${Math.ceil(model.pulling.left_s / 60)} min left` : "";
  return el(
    "div.model", {},
    el("div", {}, el("b", {}, model.id), el("small", {}, model.pulling ? model.pulling.message + left : model.summary), el("small", {}, facts)),
    model.pulling ? bar : null, button, model.error ? el("p.small.bad", {}, model.error) : null,
  );
}

/** As `sdbridge pull` and the doctor count it: 2.40 GB, 9 MB, 412 KB. */
function inBytes(size) {
  if (size >= 2 ** 30) return `${(size / 2 ** 30).toFixed(2)} GB`;
  return size >= 2 ** 20 ? `${Math.round(size / 2 ** 20)} MB` : `${Math.round(size / 2 ** 10)} KB`;
}

/** What Load does with each kind: the model itself, or the first free slot. */
const USE = {
  checkpoint: (id) => set("model", id),
  lora: (id) => intoSlot("lora", "file", id),
  controlnet: (id) => {
    const slot = intoSlot("controlnet", "model", id);
    if (!slot) return;
    const preprocessor = `controlnet.${slot}.preprocessor`;
    const meant = rows.get(preprocessor).choices.find((choice) => id.includes(choice));
    if (meant && values.get(preprocessor) === rows.get(preprocessor).default) set(preprocessor, meant);
  },
  style: (id) => set("style_model", id),
};

/** Put it into the first free slot and say which; nothing if there is none. */
function intoSlot(kind, part, id) {
  for (let slot = 1; values.has(`${kind}.${slot}.${part}`); slot++) {
    if (values.get(`${kind}.${slot}.${part}`) === id) return void toast(`${id} is already in slot ${slot}`);
    if (values.get(`${kind}.${slot}.${part}`) === "") {
      set(`${kind}.${slot}.${part}`, id);
      toast(`${id} is in slot ${slot}`);
      return slot;
    }
  }
  return void toast(`Every ${kind} slot is taken`, "bad");
}
