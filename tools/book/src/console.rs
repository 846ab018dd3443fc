//! `console` blocks as HTML. If you select text in one, or copy it with its button, you get only the commands.
//!
//! No JavaScript of our own is needed: each command is a separate block of code, so mdBook gives it a button of its own.
//! The prompt is drawn by `book.css`, and the output cannot be selected.

/// One line of HTML: an empty line would end the block of HTML for Markdown.
pub fn html(block: &str) -> String {
    let mut html = String::from("<div class=\"terminal\">");
    let mut output: Vec<String> = Vec::new();
    for (number, line) in block.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            html += &samp(&mut output);
            // Not highlighted: the names of programs are not keywords.
            html += &format!("<pre><code class=\"nohighlight\">{}</code></pre>", escaped(command));
        } else if let (0, Some(terminal)) = (number, line.strip_prefix("# ")) {
            html += &format!("<p>{}</p>", escaped(terminal));
        } else {
            output.push(escaped(line));
        }
    }
    html + &samp(&mut output) + "</div>\n"
}

/// The commands of a block.
pub fn commands(block: &str) -> impl Iterator<Item = &str> {
    block.lines().filter_map(|line| line.strip_prefix("$ "))
}

/// Takes the lines, if there are any.
fn samp(output: &mut Vec<String>) -> String {
    let lines = std::mem::take(output);
    if lines.is_empty() { String::new() } else { format!("<pre><samp>{}</samp></pre>", lines.join("&#10;")) }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str =
        "# terminal 2\n$ cargo run --bin a -- '<b>'\n [x] 1 & 2\n\n$ export A=b\n$ cargo ctl help\n^C\n";

    #[test]
    fn commands_are_code_and_what_they_print_is_not() {
        let expected = "<div class=\"terminal\"><p>terminal 2</p>\
            <pre><code class=\"nohighlight\">cargo run --bin a -- '&lt;b&gt;'</code></pre>\
            <pre><samp> [x] 1 &amp; 2&#10;</samp></pre>\
            <pre><code class=\"nohighlight\">export A=b</code></pre>\
            <pre><code class=\"nohighlight\">cargo ctl help</code></pre>\
            <pre><samp>^C</samp></pre></div>\n";
        assert_eq!(html(BLOCK), expected);
    }

    #[test]
    fn the_commands_are_without_prompt_terminal_and_output() {
        let expected = ["cargo run --bin a -- '<b>'", "export A=b", "cargo ctl help"];
        assert_eq!(commands(BLOCK).collect::<Vec<_>>(), expected);
    }
}
