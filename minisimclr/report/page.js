"use strict";
// The script of a run's page: the map answers the pointer and the keyboard, a row of neighbours answers a click.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const map = document.getElementById("map"), tip = document.getElementById("tip");
  const svg = map.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const dots = [...svg.querySelectorAll(".dot")], found = document.querySelector("#panel .found");
  const SIDE = 600, MARGIN = 12, REACH = 26; // of the drawing; how far from a dot the pointer may be
  let places = Object.values(data.maps)[0], current = -1;

  const nameOf = (label) => data.names[label] ?? "";
  const at = (k) => [MARGIN + (SIDE - 2 * MARGIN) * places[k][0], SIDE - MARGIN - (SIDE - 2 * MARGIN) * places[k][1]];

  function element(kind, name, text) {
    const made = document.createElement(kind);
    made.className = name;
    if (text !== undefined) made.textContent = text; // never as HTML: names are untrusted
    return made;
  }

  function choose(thumb, sheet, k) {
    thumb.style.setProperty("--x", k % data.columns[sheet]);
    thumb.style.setProperty("--y", Math.floor(k / data.columns[sheet]));
  }

  function neighbours(k) {
    return data.near[k].map((cell, j) => {
      const label = data.nearLabels ? data.nearLabels[k][j] : 0, wrong = data.nearLabels && label !== data.labels[k];
      const box = element("span", "near"), thumb = element("i", wrong ? "t sheet-near wrong" : "t sheet-near");
      thumb.setAttribute("role", "img");
      thumb.setAttribute("aria-label", nameOf(label) + (wrong ? ", another class" : ""));
      choose(thumb, "near", cell);
      box.title = nameOf(label);
      box.append(thumb, element("small", "", data.cosines[k][j].toFixed(2)));
      return box;
    });
  }

  // ── The map ──

  function point(k) { // show the image of dot k above it
    current = k;
    const [x, y] = at(k);
    cursor.setAttribute("cx", x);
    cursor.setAttribute("cy", y);
    cursor.removeAttribute("hidden");
    choose(tip.querySelector("i"), "dots", k);
    tip.querySelector("span").textContent = nameOf(data.labels[k]);
    const half = 60 / map.clientWidth; // the image must not leave the map, nor the screen
    tip.style.left = 100 * Math.min(Math.max(x / SIDE, half), 1 - half) + "%";
    tip.style.top = (100 * y) / SIDE + "%";
    tip.classList.toggle("below", y < 170);
    tip.hidden = false;
  }

  function open(k) { // show dot k's image, large, and its neighbours beside the map
    const image = element("i", "t sheet-dots"), chosen = element("div", "chosen"), right = data.labels[k];
    choose(image, "dots", k);
    image.setAttribute("role", "img");
    image.setAttribute("aria-label", nameOf(right));
    chosen.append(image, element("h3", "", nameOf(right)));
    if (data.votes) {
      const vote = data.votes[k];
      chosen.append(element("p", "small", vote === right ? "Its neighbours say so, too." : `Its neighbours say: ${nameOf(vote)}.`));
    }
    const row = element("div", "found");
    row.append(...neighbours(k));
    found.replaceChildren(chosen, row);
  }

  function nearest(x, y, most, allowed = () => true) {
    let best = -1, least = most * most;
    places.forEach((_, k) => {
      const [px, py] = at(k), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance <= least && allowed(px, py, k)) [best, least] = [k, distance];
    });
    return best;
  }

  function under(event) {
    const box = svg.getBoundingClientRect(), scale = SIDE / box.width;
    return nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale, REACH * Math.max(1, scale));
  }

  function hide() {
    tip.hidden = true;
    cursor.setAttribute("hidden", "");
  }

  map.addEventListener("pointermove", (event) => {
    const k = under(event);
    if (k >= 0) point(k); else if (!map.matches(":focus-visible")) hide();
  });
  map.addEventListener("pointerleave", () => { if (!map.matches(":focus-visible")) hide(); });
  map.addEventListener("click", (event) => {
    const k = under(event);
    if (k >= 0) { point(k); open(k); }
  });
  map.addEventListener("focus", () => { if (map.matches(":focus-visible")) point(Math.max(current, 0)); });
  map.addEventListener("blur", hide);

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { open(Math.max(current, 0)); event.preventDefault(); }
    if (event.key === "Escape") hide();
    const way = ARROWS[event.key];
    if (!way) return;
    event.preventDefault();
    if (current < 0) { point(0); return; }
    const [x, y] = at(current);
    const ahead = (px, py, k) => { // within 45° of the arrow
      const along = (px - x) * way[0] + (py - y) * way[1], aside = Math.abs((px - x) * way[1] + (py - y) * way[0]);
      return k !== current && along > 0 && aside <= along;
    };
    const next = nearest(x, y, 2 * SIDE, ahead);
    if (next >= 0) point(next);
  });

  function press(buttons, pressed) {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === pressed)));
  }

  const maps = [...document.querySelectorAll("[data-map]")];
  maps.forEach((button) => button.addEventListener("click", () => {
    places = data.maps[button.dataset.map];
    dots.forEach((dot, k) => {
      const [x, y] = at(k);
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
      dot.style.cx = x + "px"; // as a style it moves, where the browser can
      dot.style.cy = y + "px";
    });
    hide();
    press(maps, button);
  }));

  const keys = [...document.querySelectorAll("[data-class]")];
  keys.forEach((button) => button.addEventListener("click", () => {
    const chosen = button.getAttribute("aria-pressed") !== "true" ? button : null;
    press(keys, chosen);
    svg.classList.toggle("only", chosen !== null);
    dots.forEach((dot, k) => dot.classList.toggle("lit", chosen !== null && String(data.labels[k]) === button.dataset.class));
  }));

  // ── Rows of neighbours ──

  document.querySelectorAll(".row").forEach((row) => {
    const button = row.querySelector(".query");
    button.addEventListener("click", () => {
      const now = Number(row.dataset.query), label = data.labels[now], count = data.labels.length;
      let next = (now + 1) % count;
      while (data.labels[next] !== label) next = (next + 1) % count;
      row.dataset.query = next;
      choose(button.querySelector("i"), "dots", next);
      row.querySelector(".found").replaceChildren(...neighbours(next));
    });
  });

  open(0);
})();
