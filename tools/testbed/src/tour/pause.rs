//! Waiting for Enter, for the classroom.

use std::io::{self, IsTerminal, Write};

use tokio::sync::mpsc;

/// Standard input, read line by line.
pub(super) struct Pause {
    enter: mpsc::UnboundedReceiver<()>,
}

impl Pause {
    /// Begins to read, on a thread of its own that is never joined, because reading from a terminal cannot be cancelled.
    pub(super) fn new() -> Pause {
        let (sender, enter) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            while io::stdin().read_line(&mut line).is_ok_and(|bytes| bytes > 0) && sender.send(()).is_ok() {
                line.clear();
            }
        });
        Pause { enter }
    }

    /// Returns when Enter is pressed from now on, or at once if the input has ended.
    pub(super) async fn wait(&mut self) {
        while self.enter.try_recv().is_ok() {}
        if self.enter.is_closed() {
            return;
        }
        let mut terminal = io::stderr();
        // If standard error is not a terminal, the tour pauses without showing this.
        let visible = terminal.is_terminal();
        if visible {
            drop(write!(terminal, "  Press Enter to continue "));
        }
        let pressed = self.enter.recv().await;
        if visible {
            // Enter has moved the cursor one line down, but the end of the input has not.
            let up = if pressed.is_some() { "\x1b[1A" } else { "" };
            drop(write!(terminal, "{up}\r\x1b[2K"));
        }
    }
}
