// Runs in a page that `browser.rs` writes beside the book, with `pages`: each page's address and its commands.
// Opens every page in a wide and in a narrow frame, and writes what is wrong with it into the page itself.
"use strict";

const frames = [1280, 400].flatMap((width) => pages.map((page) => ({ ...page, width, frame: open(page.address, width) })));

function open(address, width) {
    const frame = document.createElement("iframe");
    frame.src = address;
    frame.style = `width: ${width}px; height: 900px; border: 0`;
    document.body.append(frame);
    return frame;
}

// The frames are loaded, too, when this page is.
window.onload = () => {
    const failures = frames.flatMap(({ address, width, frame, commands }) => {
        const book = frame.contentDocument;
        // What is folded away has no size.
        book.querySelectorAll("details").forEach((details) => { details.open = true; });
        const found = [...outside(book), ...(width > 1000 ? wrapped(book) : []), ...selected(book, commands), ...copied(book, commands)];
        return found.map((failure) => `${address}, ${width} pixels wide: ${failure}`);
    });
    document.getElementById("result").textContent = [...failures, `${frames.length} looks`].join("\n");
};

// What is wider than the place it has. A pixel may come from rounding.
function outside(book) {
    const root = book.scrollingElement;
    const main = book.querySelector("main") ?? book.body;
    const { left, right } = main.getBoundingClientRect();
    const found = root.scrollWidth > root.clientWidth ? ["the page scrolls sideways"] : [];
    if (right > root.clientWidth + 1) found.push("the text is wider than the window");
    const shown = [...main.querySelectorAll("*"), ...book.querySelectorAll("nav .chapter *")];
    for (const element of shown.filter((element) => element.getClientRects().length > 0 && !element.closest(".buttons"))) {
        const box = element.getBoundingClientRect();
        const isOutside = main.contains(element) && (box.left < left - 1 || box.right > right + 1);
        const isCutOff = element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
        const isMissing = element.localName === "img" && element.naturalWidth === 0;
        const name = `${element.localName}, ${(element.alt ?? element.textContent).trim().slice(0, 60)}`;
        if (isOutside) found.push(`outside of the text: ${name}`);
        if (isCutOff) found.push(`cut off: ${name}`);
        if (isMissing) found.push(`not shown: ${name}`);
    }
    return found;
}

// Programs with wrapped lines. In a wide window a line has place for what rustfmt allows, beside the table of contents.
function wrapped(book) {
    const found = [...book.querySelectorAll("pre > code.language-rust")].filter((code) => {
        const style = getComputedStyle(code);
        const height = code.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
        const lines = code.textContent.trimEnd().split("\n");
        const isLong = lines.some((line) => line.length > 120);
        return !isLong && Math.round(height / parseFloat(style.lineHeight)) > lines.length;
    });
    return found.map((code) => `wrapped: ${code.textContent.trim().slice(0, 60)}`);
}

// What the buttons in terminals copy. mdBook puts it into a field, selects that, and asks the browser to copy.
function copied(book, commands) {
    const copies = [];
    book.execCommand = () => copies.push([...book.querySelectorAll("body > textarea")].at(-1).value);
    book.querySelectorAll(".terminal .clip-button").forEach((button) => button.click());
    return differences("copied", copies, commands);
}

// What you get when you select a whole terminal.
function selected(book, commands) {
    const selection = book.getSelection();
    const lines = [...book.querySelectorAll(".terminal")].flatMap((terminal) => {
        selection.selectAllChildren(terminal);
        return selection.toString().split("\n").filter((line) => line !== "");
    });
    return differences("selected", lines, commands);
}

function differences(what, lines, commands) {
    const [is, should] = [lines, commands].map((list) => JSON.stringify(list));
    return is === should ? [] : [`${what} is ${is}, not ${should}`];
}
