//! Draws what happens in which order: a vertical line for each participant, and arrows between the lines.

use crate::{
    Picture,
    svg::{self, BOX, Kind},
};

const MARGIN: f32 = 20.0;

/// The distance from one step to the next.
const STEP: f32 = 40.0;

/// A picture that is being described.
pub(crate) struct Sequence {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    /// The distance between two lines.
    gap: f32,
    actors: Vec<(Kind, &'static str)>,
    steps: Vec<Step>,
}

enum Step {
    Message { from: usize, to: usize, text: &'static str, key: &'static str, answer: bool },
    Note { actor: usize, text: &'static str },
    End { actor: usize, text: &'static str },
}

impl Sequence {
    pub(crate) fn new(
        name: &'static str,
        title: &'static str,
        description: &'static str,
        gap: f32,
        actors: &[(Kind, &'static str)],
    ) -> Sequence {
        Sequence { name, title, description, gap, actors: actors.to_vec(), steps: Vec::new() }
    }

    /// A message from one participant to another. `key` is what it carries, word for word.
    pub(crate) fn message(self, from: usize, to: usize, text: &'static str, key: &'static str) -> Sequence {
        self.step(Step::Message { from, to, text, key, answer: false })
    }

    /// The answer to it: an acknowledgement, or a confirm.
    pub(crate) fn answer(self, from: usize, to: usize, text: &'static str) -> Sequence {
        self.step(Step::Message { from, to, text, key: "", answer: true })
    }

    /// Something that one participant does alone.
    pub(crate) fn note(self, actor: usize, text: &'static str) -> Sequence {
        self.step(Step::Note { actor, text })
    }

    /// A participant that ends unexpectedly.
    pub(crate) fn end(self, actor: usize, text: &'static str) -> Sequence {
        self.step(Step::End { actor, text })
    }

    fn step(mut self, step: Step) -> Sequence {
        self.steps.push(step);
        self
    }

    pub(crate) fn draw(self) -> Picture {
        let widths = self.actors.iter().map(|(kind, name)| svg::box_width(*kind, name));
        let widest = widths.fold(0.0, f32::max);
        let x = |actor: usize| MARGIN + widest / 2.0 + actor as f32 * self.gap;
        let top = MARGIN + BOX;
        let bottom = top + 16.0 + STEP * self.steps.len() as f32;

        let mut body = String::new();
        for actor in 0..self.actors.len() {
            let ends = |step: &Step| matches!(step, Step::End { actor: who, .. } if *who == actor);
            let end = self.steps.iter().position(ends).map_or(bottom, |step| height(top, step));
            body += &format!("<path class=\"life\" d=\"M{} {top}V{end}\"/>\n", x(actor));
        }
        for (at, step) in self.steps.iter().enumerate() {
            let y = height(top, at);
            body += &match *step {
                Step::Message { from, to, text, key, answer } => message((x(from), x(to)), y, text, key, answer),
                Step::Note { actor, text } => {
                    let width = svg::caption_width(text) + 20.0;
                    let class = self.actors[actor].0.name();
                    format!(
                        "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"24\" rx=\"4\"/>\n",
                        x(actor) - width / 2.0,
                        y - 12.0
                    ) + &svg::text("note", "middle", (x(actor), y + 4.0), text)
                }
                Step::End { actor, text } => {
                    let (left, right, above, below) = (x(actor) - 7.0, x(actor) + 7.0, y - 7.0, y + 7.0);
                    format!(
                        "<path class=\"cross\" d=\"M{left} {above}L{right} {below}M{left} {below}L{right} {above}\"/>\n"
                    ) + &svg::text("trouble", "end", (left - 8.0, y + 4.0), text)
                }
            };
        }
        for (actor, (kind, name)) in self.actors.iter().enumerate() {
            body += &svg::node(*kind, name, (x(actor), MARGIN + BOX / 2.0), (svg::box_width(*kind, name), BOX));
        }
        let width = x(self.actors.len() - 1) + widest / 2.0 + MARGIN;
        Picture { name: self.name, svg: svg::document(self.title, self.description, (width, bottom + MARGIN), &body) }
    }
}

/// The height of a step in the picture.
fn height(top: f32, step: usize) -> f32 {
    top + 34.0 + STEP * step as f32
}

fn message((from, to): (f32, f32), y: f32, text: &str, key: &str, answer: bool) -> String {
    let arrow = svg::arrow(&format!("M{from} {y}"), (to, y), from < to, answer);
    // In the middle above the line: first the words, then what the message carries.
    let key_width = key.chars().count() as f32 * 7.25;
    let gap = if key.is_empty() || text.is_empty() { 0.0 } else { 8.0 };
    let left = (from + to - svg::caption_width(text) - gap - key_width) / 2.0;
    let words = match (text, key) {
        (text, "") => svg::text("", "middle", ((from + to) / 2.0, y - 7.0), text),
        _ => {
            let right = left + svg::caption_width(text);
            svg::text("", "end", (right, y - 7.0), text) + &svg::text("key", "start", (right + gap, y - 7.0), key)
        }
    };
    arrow + &words
}
