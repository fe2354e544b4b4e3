/* A button in each heading sorts the table by its column: numbers from the largest, words from A. */
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    if (head.classList.contains("words")) return;  // sentences have no order
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rows = [...body.rows].map((row) => {
        const cell = row.cells[column], value = cell.dataset.value ?? cell.textContent.trim();
        return { row, value, number: value === "" ? NaN : Number(value) };
      });
      const numbers = rows.every(({ value, number }) => value === "" || !Number.isNaN(number));
      const first = numbers ? "descending" : "ascending", second = numbers ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        if (!numbers) return sign * a.value.localeCompare(b.value, undefined, { numeric: true });
        // What has no number stays at the end, whichever way.
        if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number);
        return sign * (a.number - b.number);
      });
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      body.append(...rows.map(({ row }) => row));
    });
  });
}
