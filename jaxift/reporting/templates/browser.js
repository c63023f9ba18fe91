"use strict";
(function () {
  const data = JSON.parse(document.getElementById("items").textContent);
  const PAGE = 10, LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", SETS = { homo: "HOMO", id: "ID", ood: "OOD" };
  const get = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text; // whatever a question holds, it is shown as text
    return element;
  };

  // the questions of a domain's test set, and where each one's probabilities begin
  const opened = {};
  function open(name) {
    if (!opened[name]) {
      const set = data.sets[name], raw = bytes(set.ask);
      const ask = new Uint32Array(raw.buffer), starts = new Uint32Array(ask.length + 1);
      ask.forEach((question, place) => (starts[place + 1] = starts[place] + data.questions[question][1].length));
      opened[name] = { ask, starts, answers: {}, say: set.say };
    }
    return opened[name];
  }
  function answers(set, model) {
    if (!set.answers[model] && set.say[model]) set.answers[model] = bytes(set.say[model]);
    return set.answers[model];
  }

  const domain = get("domain"), set = get("set"), arm = get("arm"), seed = get("seed");
  const flip = get("flip"), knows = get("knows"), words = get("words");
  const list = get("questions"), count = get("count"), back = get("back"), next = get("next");
  let found = [], page = 0;

  function fill(select, values, label) {
    const before = select.value;
    select.replaceChildren(...values.map((value) => {
      const option = make("option", "", label ? label(value) : value);
      option.value = value;
      return option;
    }));
    if (values.map(String).includes(before)) select.value = before;
  }
  let wanted = ""; // the seed that was chosen last, also while a model without seeds is shown
  const label = (name) => (name === data.base ? "base, zero-shot" : name);
  const tuned = () => data.models.filter((model) => model[0] === domain.value && model[1] !== data.probe);

  function offer() {
    const arms = [...new Set(tuned().map((model) => model[1]))];
    fill(arm, [...arms.filter((name) => name !== data.base), ...arms.filter((name) => name === data.base)], label);
    const seeds = tuned().filter((model) => model[1] === arm.value).map((model) => (model[2] === null ? "" : model[2]));
    fill(seed, seeds, (value) => (value === "" ? "–" : value));
    if (seeds.map(String).includes(wanted)) seed.value = wanted;
    seed.disabled = seeds.length < 2;
  }
  function chosen() {
    const same = (model) => model[1] === arm.value && String(model[2] === null ? "" : model[2]) === seed.value;
    return data.models.findIndex((model) => model[0] === domain.value && same(model));
  }
  const answer = (said, place) => said[place] & 127, sure = (said, place) => said[place] > 127;
  const probe = () => data.models.findIndex((model) => model[0] === domain.value && model[1] === data.probe);

  function search() {
    const here = open(domain.value + "/" + set.value), base = answers(here, probe()), after = answers(here, chosen());
    const size = here.ask.length, sought = words.value.trim().toLowerCase();
    found = [];
    for (let place = 0; place < size; place += 1) {
      const question = data.questions[here.ask[place]], gold = question[2];
      const was = answer(base, place), right = was === gold, now = after ? answer(after, place) : was;
      if (flip.value === "lost" && !(right && now !== gold)) continue;
      if (flip.value === "gained" && !(!right && now === gold)) continue;
      if (flip.value === "changed" && now === was) continue;
      if (flip.value === "kept" && now !== was) continue;
      const known = (right ? "right" : "wrong") + (sure(base, place) ? ", sure" : ", unsure");
      if (knows.value && knows.value !== known) continue;
      if (sought && ![question[0], question[3], ...question[1]].some((text) => text.toLowerCase().includes(sought))) continue;
      found.push(place);
    }
    page = 0;
    show();
  }

  function bar(kind, value, who) {
    const row = make("span", "bar " + kind), fill = make("span", "fill");
    fill.style.width = (100 * value) / 255 + "%";
    row.append(make("span", "share", Math.round((100 * value) / 255) + " %"), fill);
    row.setAttribute("role", "img");
    row.setAttribute("aria-label", who + " " + Math.round((100 * value) / 255) + " %");
    return row;
  }

  function shown(here, place) {
    const [text, options, gold, subject] = data.questions[here.ask[place]], size = here.ask.length;
    const base = answers(here, probe()), after = answers(here, chosen()), item = make("li");
    const title = make("h3", "", text);
    title.dir = "auto";
    item.append(title);
    if (subject) item.append(make("p", "subject", subject));
    const rows = make("ol", "options"), heads = make("li", "heads");
    heads.setAttribute("aria-hidden", "true"); // each bar says which it is
    heads.append(make("b", "option"), make("span", "", "before"), ...(after ? [make("span", "", "after")] : []));
    rows.append(heads);
    options.forEach((option, number) => {
      const row = make("li", number === gold ? "true" : ""), name = make("span", "option");
      name.append(make("b", "", LETTERS[number]), " ", Object.assign(make("span", "", option), { dir: "auto" }));
      if (number === gold) name.append(" ", make("span", "mark", "true"));
      if (number === answer(base, place)) name.append(" ", make("span", "mark before", "before"));
      if (after && number === answer(after, place)) name.append(" ", make("span", "mark after", "after"));
      row.append(name, bar("before", base[size + here.starts[place] + number], "before"));
      if (after) row.append(bar("after", after[size + here.starts[place] + number], "after"));
      rows.append(row);
    });
    item.append(rows);
    return item;
  }

  function show() {
    const here = open(domain.value + "/" + set.value), pages = Math.max(1, Math.ceil(found.length / PAGE));
    list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((place) => shown(here, place)));
    count.textContent = found.length.toLocaleString("en") + " of " + here.ask.length.toLocaleString("en")
      + " questions; page " + (page + 1) + " of " + pages;
    back.disabled = page === 0;
    next.disabled = page >= pages - 1;
  }
  function turn(by) {
    page += by;
    show();
    count.focus();
  }

  fill(domain, [...new Set(data.models.map((model) => model[0]))]);
  fill(set, Object.keys(SETS), (name) => SETS[name]);
  offer();
  for (const select of [domain, arm]) select.addEventListener("change", () => { offer(); search(); });
  seed.addEventListener("change", () => { wanted = seed.value; });
  for (const select of [set, seed, flip, knows]) select.addEventListener("change", search);
  let waiting;
  words.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  get("filters").addEventListener("submit", (event) => event.preventDefault());
  back.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  search();
  get("browser").hidden = false;
})();
