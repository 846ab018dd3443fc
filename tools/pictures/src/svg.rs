//! The common look of all pictures.

/// What a box stands for. Shape, colour and caption all show it, not only the colour.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Producer,
    Exchange,
    Queue,
    Consumer,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Producer => "producer",
            Kind::Exchange => "exchange",
            Kind::Queue => "queue",
            Kind::Consumer => "consumer",
        }
    }
}

/// The height of a box with one line of text.
pub(crate) const BOX: f32 = 40.0;

/// The room for the three messages at the end of a queue.
const CELLS: f32 = 30.0;

/// A picture has its own background, so that it is legible on every page, also on a page whose mode is not the
/// system's. Some browsers take `prefers-color-scheme` from the page, others from the system.
const STYLE: &str = "\
    .card{fill:#fff;stroke:#d0d7de}\
    text{font:12px system-ui,-apple-system,'Segoe UI','Helvetica Neue','DejaVu Sans',Arial,sans-serif;fill:#57606a}\
    .name,.key{font:13px ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',Consolas,monospace;fill:#1f2328}\
    .key{font-size:12px}\
    text{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}\
    text.name,text.note{stroke:none}\
    .line{fill:none;stroke:#57606a;stroke-width:1.5}\
    .head{fill:#57606a}\
    .life{stroke:#afb8c1;stroke-dasharray:2 4}\
    .tag{fill:#fff;stroke:#afb8c1}\
    .producer{fill:#ddf4ff;stroke:#0969da}\
    .exchange{fill:#fff1e5;stroke:#bc4c00}\
    .queue{fill:#dafbe1;stroke:#1a7f37}\
    .consumer{fill:#fbefff;stroke:#8250df}\
    .cross{stroke:#cf222e;stroke-width:2.5}\
    .trouble{fill:#cf222e}\
    @media(prefers-color-scheme:dark){\
    .card{fill:#0d1117;stroke:#3d444d}\
    text{fill:#9198a1;stroke:#0d1117}\
    .name,.key{fill:#f0f6fc}\
    .line{stroke:#9198a1}\
    .head{fill:#9198a1}\
    .life{stroke:#656c76}\
    .tag{fill:#0d1117;stroke:#656c76}\
    .producer{fill:#121d2f;stroke:#4493f8}\
    .exchange{fill:#2b1a0e;stroke:#f0883e}\
    .queue{fill:#12261e;stroke:#3fb950}\
    .consumer{fill:#231a33;stroke:#ab7df8}\
    .cross{stroke:#f85149}\
    .trouble{fill:#f85149}}";

/// The whole file. Screen readers read its title and description.
pub(crate) fn document(title: &str, description: &str, (width, height): (f32, f32), body: &str) -> String {
    let (card_width, card_height) = (width - 1.0, height - 1.0);
    let (title, description) = (escape(title), escape(description));
    format!(
        "<!-- Drawn by `cargo pictures`; what it shows stands in tools/pictures/src/chapters.rs. -->\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"title description\">\n\
         <title id=\"title\">{title}</title>\n\
         <desc id=\"description\">{description}</desc>\n\
         <style>{STYLE}</style>\n\
         <rect class=\"card\" x=\"0.5\" y=\"0.5\" width=\"{card_width}\" height=\"{card_height}\" rx=\"8\"/>\n\
         {body}</svg>\n"
    )
}

/// The width of a box with this name.
pub(crate) fn box_width(kind: Kind, name: &str) -> f32 {
    let cells = if kind == Kind::Queue { CELLS } else { 0.0 };
    (name_width(name) + cells + 32.0).ceil()
}

/// The width of a text in the class `name`, whose letters all have the same width in any font.
fn name_width(text: &str) -> f32 {
    text.chars().count() as f32 * 7.85
}

/// The width of a key with its frame.
pub(crate) fn tag_width(text: &str) -> f32 {
    (text.chars().count() as f32 * 7.25 + 16.0).ceil()
}

/// The approximate width of a caption. It depends on the font.
pub(crate) fn caption_width(text: &str) -> f32 {
    (text.chars().count() as f32 * 6.9).ceil()
}

/// A box with its name in it, around the point (x, y).
pub(crate) fn node(kind: Kind, name: &str, (x, y): (f32, f32), (width, height): (f32, f32)) -> String {
    let (left, top, right, bottom) = (x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0);
    let class = kind.name();
    let shape = match kind {
        Kind::Producer | Kind::Consumer => {
            format!(
                "<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"16\"/>\n"
            )
        }
        // Cut corners.
        Kind::Exchange => {
            let (x1, x2, y1, y2) = (left + 12.0, right - 12.0, top + 12.0, bottom - 12.0);
            format!(
                "<path class=\"{class}\" d=\"M{x1} {top}H{x2}L{right} {y1}V{y2}L{x2} {bottom}H{x1}L{left} {y2}V{y1}Z\"/>\n"
            )
        }
        // Messages wait at its end.
        Kind::Queue => {
            let cells: String = (1..=3).map(|n| format!("M{} {top}V{bottom}", right - n as f32 * 10.0)).collect();
            format!(
                "<path class=\"{class}\" d=\"M{left} {top}H{right}V{bottom}H{left}Z\"/>\n\
                 <path class=\"{class}\" d=\"{cells}\"/>\n"
            )
        }
    };
    let x = if kind == Kind::Queue { x - CELLS / 2.0 } else { x };
    shape + &text("name", "middle", (x, y + 4.5), name)
}

/// One line of text. `anchor` says which point of it is at (x, y).
pub(crate) fn text(class: &str, anchor: &str, (x, y): (f32, f32), text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<text{class} x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>\n", escape(text))
}

/// A key in a frame, around the point (x, y), on an arrow.
pub(crate) fn tag(key: &str, (x, y): (f32, f32)) -> String {
    let width = tag_width(key);
    let (left, top) = (x - width / 2.0, y - 10.0);
    format!("<rect class=\"tag\" x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"20\" rx=\"4\"/>\n")
        + &text("key", "middle", (x, y + 4.0), key)
}

/// A line whose arrowhead is at its end (x, y). It arrives there horizontally, from the left or from the right.
pub(crate) fn arrow(path: &str, (x, y): (f32, f32), to_the_right: bool, dashed: bool) -> String {
    let back = if to_the_right { x - 9.0 } else { x + 9.0 };
    let dashes = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    format!(
        "<path class=\"line\"{dashes} d=\"{path}H{back}\"/>\n\
         <path class=\"head\" d=\"M{x} {y}L{back} {}V{}Z\"/>\n",
        y - 4.5,
        y + 4.5
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
