// Shows the rows of ROWS that hold all words typed; search_script puts ROWS, HEADERS and LIMIT before it.
const box = document.getElementById("search"), table = document.getElementById("results");
const count = document.getElementById("count");
const texts = ROWS.map(([, cells]) => cells.join("\n").toLowerCase());

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = [];
  for (let i = 0; i < ROWS.length; i++) if (words.every(word => texts[i].includes(word))) matches.push(ROWS[i]);
  const head = element("tr"), body = element("tbody");
  for (const header of HEADERS) head.append(element("th", header));
  for (const [address, cells] of matches.slice(0, LIMIT)) {
    const row = element("tr");
    cells.forEach((text, column) => {
      const cell = element("td", column ? text : undefined);
      if (!column) { const link = element("a", text || "row"); link.href = address; cell.append(link); }
      if (text.length > 24) cell.className = text.length > 80 ? "prose" : "words";
      row.append(cell);
    });
    body.append(row);
  }
  const top = element("thead");
  top.append(head);
  table.replaceChildren(top, body);
  const shown = Math.min(matches.length, LIMIT);
  const rest = shown < matches.length ? `, the first ${shown} shown` : "";
  count.textContent = `${matches.length} of ${ROWS.length} rows${rest}`;
}

box.addEventListener("input", show);
show();
