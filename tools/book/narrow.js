// For narrow windows. Without JavaScript the pages can be read, too: they only look plainer there.
"use strict";

// Each row of a large table is a list: see book.css. Here its cells get the names of their columns.
for (const table of document.querySelectorAll("table")) {
    const names = [...table.querySelectorAll("th")].map(({ textContent }) => textContent && `${textContent}: `);
    table.classList.toggle("large", names.length > 2);
    for (const cell of table.querySelectorAll("td")) cell.dataset.column = names[cell.cellIndex];
}

// A line of Rust may also be wrapped where rustfmt would do it, not only at spaces.
for (const code of document.querySelectorAll("code.language-rust")) {
    const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts) {
        const parts = text.data.split(/(?<=\((?!\)))|(?=\.[a-z])/);
        text.replaceWith(...parts.flatMap((part, number) => number > 0 ? [document.createElement("wbr"), part] : [part]));
    }
}
