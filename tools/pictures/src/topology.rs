//! Draws which program, exchange and queue is connected with which: boxes in columns, arrows between them.

use crate::{
    Picture,
    svg::{self, BOX, Kind},
};

const MARGIN: f32 = 20.0;

/// The distance from one row to the next.
const ROW: f32 = 84.0;

/// The distance between two arrows at the same side of a box.
const LANE: f32 = 26.0;

/// The room for a caption below a box.
const CAPTION: f32 = 18.0;

/// A picture that is being described.
pub(crate) struct Topology {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    nodes: Vec<Node>,
    arrows: Vec<Arrow>,
}

struct Node {
    kind: Kind,
    name: &'static str,
    caption: &'static str,
    column: usize,
    row: f32,
}

struct Arrow {
    from: usize,
    to: usize,
    key: &'static str,
    note: &'static str,
}

impl Arrow {
    /// The column on whose right side it begins or ends.
    fn gap(&self, nodes: &[Node]) -> usize {
        nodes[self.from].column.min(nodes[self.to].column)
    }

    /// The room for its key and the note below the key.
    fn key_width(&self) -> f32 {
        if self.key.is_empty() { 0.0 } else { svg::tag_width(self.key).max(svg::caption_width(self.note)) + 10.0 }
    }
}

/// A box in a topology.
#[derive(Clone, Copy)]
pub(crate) struct Id(usize);

impl Topology {
    pub(crate) fn new(name: &'static str, title: &'static str, description: &'static str) -> Topology {
        Topology { name, title, description, nodes: Vec::new(), arrows: Vec::new() }
    }

    /// Adds a box. A row can be a half number.
    pub(crate) fn node(
        &mut self,
        kind: Kind,
        name: &'static str,
        caption: &'static str,
        (column, row): (usize, f32),
    ) -> Id {
        self.nodes.push(Node { kind, name, caption, column, row });
        Id(self.nodes.len() - 1)
    }

    /// Adds an arrow from one box to another in the next column, or in the one before.
    pub(crate) fn arrow(&mut self, from: Id, to: Id) {
        self.key(from, to, "", "");
    }

    /// The same with a key on it, and below the key a note that says what kind of key it is.
    pub(crate) fn key(&mut self, from: Id, to: Id, key: &'static str, note: &'static str) {
        self.arrows.push(Arrow { from: from.0, to: to.0, key, note });
    }

    /// One arrow for each binding key.
    pub(crate) fn bindings(&mut self, exchange: Id, queue: Id, keys: &[&'static str]) {
        let note = if keys.len() == 1 { "binding key" } else { "binding keys" };
        for (at, key) in keys.iter().enumerate() {
            self.key(exchange, queue, key, if at + 1 == keys.len() { note } else { "" });
        }
    }

    pub(crate) fn draw(self) -> Picture {
        let columns = self.columns();
        let (first, last) = self.nodes.iter().fold((f32::MAX, f32::MIN), |(first, last), node| {
            let half = self.height(node) / 2.0;
            (first.min(node.row * ROW - half), last.max(node.row * ROW + half))
        });
        let y = |node: &Node| node.row * ROW - first + MARGIN;

        let mut body = String::new();
        for (at, arrow) in self.arrows.iter().enumerate() {
            let (from, to) = (&self.nodes[arrow.from], &self.nodes[arrow.to]);
            let to_the_right = from.column < to.column;
            let (x1, x2) = match to_the_right {
                true => (columns[from.column].1, columns[to.column].0),
                false => (columns[from.column].0, columns[to.column].1),
            };
            // All boxes of a column are as wide as its widest box, so their edges are in one line.
            let (y1, y2) = (y(from) + self.lane(arrow.from, at), y(to) + self.lane(arrow.to, at));
            // First the curve, then a straight part for the key.
            let beside = self.arrows.iter().filter(|other| other.gap(&self.nodes) == arrow.gap(&self.nodes));
            let widest = beside.map(Arrow::key_width).fold(0.0, f32::max);
            let straight = if arrow.key.is_empty() { 14.0 } else { widest + 14.0 };
            let bend = if to_the_right { x2 - straight } else { x2 + straight };
            let middle = (x1 + bend) / 2.0;
            let path = format!("M{x1} {y1}C{middle} {y1} {middle} {y2} {bend} {y2}");
            body += &svg::arrow(&path, (x2, y2), to_the_right, false);
            if !arrow.key.is_empty() {
                let half = (straight + 8.0) / 2.0;
                let x = if to_the_right { x2 - half } else { x2 + half };
                body += &svg::tag(arrow.key, (x, y2));
                body += &svg::text("", "middle", (x, y2 + 24.0), arrow.note);
            }
        }
        for node in &self.nodes {
            let (left, right) = columns[node.column];
            let (x, y, height) = ((left + right) / 2.0, y(node), self.height(node));
            body += &svg::node(node.kind, node.name, (x, y), (right - left, height));
            body += &svg::text("", "middle", (x, y + height / 2.0 + 14.0), node.caption);
        }
        let width = columns.last().map_or(0.0, |(_, right)| right + MARGIN);
        let height = last - first + CAPTION + 2.0 * MARGIN - 4.0;
        Picture { name: self.name, svg: svg::document(self.title, self.description, (width, height), &body) }
    }

    /// The left and right edge of each column.
    fn columns(&self) -> Vec<(f32, f32)> {
        let count = self.nodes.iter().map(|node| node.column + 1).max().unwrap_or_default();
        let mut left = MARGIN;
        let mut columns = Vec::new();
        for column in 0..count {
            let nodes = self.nodes.iter().filter(|node| node.column == column);
            let width = |node: &Node| svg::box_width(node.kind, node.name).max(svg::caption_width(node.caption));
            let right = left + nodes.map(width).fold(0.0, f32::max);
            columns.push((left, right));
            // The gap to the next column: room for the curve and for the widest key.
            let beside = self.arrows.iter().filter(|arrow| arrow.gap(&self.nodes) == column);
            left = right + 44.0 + beside.map(Arrow::key_width).fold(0.0, f32::max);
        }
        columns
    }

    /// The height of a box, which depends on the number of arrows at its busier side.
    fn height(&self, node: &Node) -> f32 {
        let Some(id) = self.nodes.iter().position(|other| std::ptr::eq(node, other)) else { return BOX };
        let count = |left| self.side(id, left).len();
        BOX.max(count(true).max(count(false)) as f32 * LANE + 8.0)
    }

    /// How far above or below the middle of a box an arrow touches it.
    fn lane(&self, node: usize, arrow: usize) -> f32 {
        let side = [true, false].map(|left| self.side(node, left));
        let Some(side) = side.into_iter().find(|side| side.contains(&arrow)) else { return 0.0 };
        let place = side.iter().position(|other| *other == arrow).unwrap_or_default();
        (place as f32 - (side.len() as f32 - 1.0) / 2.0) * LANE
    }

    /// The arrows at one side of a box, from top to bottom.
    fn side(&self, node: usize, left: bool) -> Vec<usize> {
        let other = |arrow: &Arrow| &self.nodes[if arrow.from == node { arrow.to } else { arrow.from }];
        let here = |arrow: &Arrow| {
            (arrow.from == node || arrow.to == node) && (other(arrow).column < self.nodes[node].column) == left
        };
        let mut side: Vec<usize> = (0..self.arrows.len()).filter(|at| here(&self.arrows[*at])).collect();
        side.sort_by(|one, two| other(&self.arrows[*one]).row.total_cmp(&other(&self.arrows[*two]).row));
        side
    }
}
