"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Slider: the range input holds the value and answers to keys; a finger or a mouse on the picture sets it.
  for (const stage of all("[data-slider]")) {
    const input = stage.querySelector("input");
    const show = () => {
      stage.style.setProperty("--at", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % original`);
    };
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      input.value = Math.round((100 * (event.clientX - box.left)) / box.width);
      show();
    };
    input.addEventListener("input", show);
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      stage.setPointerCapture(event.pointerId);
      event.preventDefault();
      input.focus({ preventScroll: true });
      follow(event);
    });
    stage.addEventListener("pointermove", (event) => {
      if (stage.hasPointerCapture(event.pointerId)) follow(event);
    });
    show();
  }

  // Sorting: numbers by value, texts by locale, what is missing last; the same heading again turns the order round.
  const order = new Intl.Collator("en", { numeric: true });
  for (const table of all("[data-sortable]")) {
    const body = table.tBodies[0];
    const headings = all("th", table);
    const rows = [...body.rows];
    headings.forEach((heading, at) => {
      heading.querySelector("button").addEventListener("click", () => {
        const numeric = heading.classList.contains("number");
        const before = heading.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        const sign = down ? -1 : 1;
        const value = (row) => {
          const cell = row.cells[at];
          return numeric ? (cell.dataset.key === undefined ? null : Number(cell.dataset.key)) : cell.textContent;
        };
        const sorted = rows.map((row) => [value(row), row]).sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * (numeric ? a - b : order.compare(a, b));
        });
        body.append(...sorted.map(([, row]) => row));
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  }

  // Legends hide and show curves.
  for (const chart of all("[data-chart]")) {
    for (const box of all("[data-toggle]", chart)) {
      box.addEventListener("change", () => {
        for (const curve of all(`[data-curve="${box.dataset.toggle}"]`, chart)) {
          curve.classList.toggle("off", !box.checked);
        }
      });
    }
  }

  // Tokens that a pruner drops, by method and budget: one hexadecimal digit tells four of them.
  for (const part of all("[data-kept]")) {
    const { budgets, kept } = JSON.parse(part.querySelector("script").textContent);
    const method = part.querySelector("[data-method]");
    const budget = part.querySelector("[data-budget]");
    const text = part.querySelector("[data-budget-text]");
    const show = () => {
      const share = budgets[budget.value];
      const percent = `${+(100 * share).toPrecision(4)} %`;
      text.textContent = percent;
      budget.setAttribute("aria-valuetext", percent);
      const told = (kept[method.value] || {})[share];
      all("[data-asked]", part).forEach((card, at) => {
        const [digits, answer] = told ? told[at] : ["", null];
        const rows = Number(card.dataset.rows);
        const cols = Number(card.dataset.cols);
        const path = card.querySelector(".dropped path");
        let count = 0;
        let shape = "";
        for (let cell = 0; digits && cell < rows * cols; cell += 1) {
          if ((parseInt(digits[cell >> 2], 16) >> (3 - (cell & 3))) & 1) count += 1;
          else shape += `M${cell % cols} ${Math.floor(cell / cols)}h1v1h-1z`;
        }
        if (path) path.setAttribute("d", shape);
        const places = digits ? `${count} of ${rows * cols} tokens are left behind the last layer. ` : "";
        const truth = card.dataset.answer;
        const said = answer === null ? "Not asked at this budget." : `Answer: ${answer}.`;
        card.querySelector("[data-told]").textContent = `${places}${said}${truth ? ` True: ${truth}.` : ""}`;
      });
    };
    method.addEventListener("input", show);
    budget.addEventListener("input", show);
    show();
  }

  // Theme: as the system says, or one of the two.
  const themes = ["system", "light", "dark"];
  const button = document.querySelector("[data-theme-button]");
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "system";
    const next = themes[(themes.indexOf(now) + 1) % themes.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  });
})();
