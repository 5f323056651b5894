"use strict";
{
  const $ = (id) => document.getElementById(id);

  // The table: sorted and filtered as a whole, shown in pages

  const { columns, rows } = JSON.parse($("rows").textContent);
  const PAGE = 50;
  const texts = rows.map((row) => row.join("\u0001").toLowerCase());
  let order = rows.map((_, place) => place);
  let sorted = { column: -1, down: false };
  let page = 0;

  const compare = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };

  // One word of the search: `batch_size=32` and the like, or a text to be found anywhere in the row.
  const test = (word) => {
    const parts = /^([\w.]+)(<=|>=|<|>|=)(.+)$/.exec(word);
    const column = parts ? columns.findIndex((each) => each.key === parts[1]) : -1;
    if (column < 0) return (place) => texts[place].includes(word);
    const number = Number(parts[3]);
    return (place) => {
      const cell = rows[place][column];
      if (cell === null) return false;
      if (typeof cell === "number") return compare[parts[2]](cell, number);
      return compare[parts[2]](String(cell).toLowerCase(), parts[3]);
    };
  };

  const arrange = () => {
    const tests = $("search").value.toLowerCase().split(/\s+/).filter(Boolean).map(test);
    order = rows.map((_, place) => place).filter((place) => tests.every((passes) => passes(place)));
    if (sorted.column >= 0) {
      const sign = sorted.down ? -1 : 1;
      order.sort((one, other) => {
        const a = rows[one][sorted.column], b = rows[other][sorted.column];
        if (a === b) return one - other;
        if (a === null || b === null) return a === null ? 1 : -1;  // what has no value comes last either way
        if (typeof a === "number" && typeof b === "number") return sign * (a - b);
        return sign * String(a).localeCompare(String(b), "en", { numeric: true });
      });
    }
    page = 0;
    show();
  };

  const words = (cell, column) => {
    if (cell === null) return "";
    if (typeof cell !== "number") return String(cell);
    if (column.digits !== undefined) return cell.toFixed(column.digits);
    if (Number.isInteger(cell)) return String(cell);
    return Math.abs(cell) < 1e-3 ? cell.toExponential(2).replace(/\.?0+e/, "e") : String(Number(cell.toPrecision(3)));
  };

  const show = () => {
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    $("body").replaceChildren(...order.slice(PAGE * page, PAGE * (page + 1)).map((place) => {
      const line = document.createElement("tr");
      for (const [number, column] of columns.entries()) {
        const cell = line.insertCell();
        cell.textContent = words(rows[place][number], column);
        if (column.figure) cell.className = "figure";
        if (column.key === "state") cell.className = `state ${rows[place][number]}`;
        if (column.long) cell.title = cell.textContent;
      }
      return line;
    }));
    $("shown").textContent = order.length === rows.length ? `${rows.length} trials` : `${order.length} of ${rows.length} trials`;
    $("page").textContent = `page ${page + 1} of ${pages}`;
    $("pager").hidden = pages === 1;
    $("before").disabled = page === 0;
    $("after").disabled = page === pages - 1;
  };

  const heads = columns.map((column, number) => {
    const head = document.createElement("th");
    head.scope = "col";
    head.className = column.figure ? "figure" : "";
    head.setAttribute("aria-sort", "none");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.title;
    button.addEventListener("click", () => {
      // Up, down, and back to the order of the report; figures begin with the greatest.
      const first = Boolean(column.figure);
      if (sorted.column !== number) sorted = { column: number, down: first };
      else if (sorted.down === first) sorted = { column: number, down: !first };
      else sorted = { column: -1, down: false };
      for (const [place, each] of heads.entries()) {
        each.setAttribute("aria-sort", place !== sorted.column ? "none" : sorted.down ? "descending" : "ascending");
      }
      arrange();
    });
    head.append(button);
    return head;
  });
  $("heads").append(...heads);
  $("search").addEventListener("input", arrange);
  $("before").addEventListener("click", () => { page -= 1; show(); });
  $("after").addEventListener("click", () => { page += 1; show(); });
  $("csv").addEventListener("click", () => {
    const field = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
    const lines = [columns.map((column) => column.key), ...order.map((place) => rows[place].map((cell) => String(cell ?? "")))];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.map((line) => line.map(field).join(",")).join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = $("csv").dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  show();

  // A figure tells of the trial that was clicked.
  document.addEventListener("trial", (event) => {
    $("search").value = `trial=${event.detail}`;
    arrange();
    $("trials").scrollIntoView();
  });
}
