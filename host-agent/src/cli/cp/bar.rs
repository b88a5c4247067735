//! How far a copy is, on stderr.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hospes_tree::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two looks at the counters, while a copy runs.
const LOOK: Duration = Duration::from_millis(100);

/// A line that shows a copy's counters until it is dropped.
pub(super) struct Bar {
    over: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bar {
    pub(super) fn start(progress: Arc<Progress>) -> Self {
        let (over, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("progress".into()).spawn(move || draw(&progress, &ended));
        Self { over: Some(over), thread: thread.ok() }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.over = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn draw(progress: &Progress, ended: &mpsc::Receiver<()>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style("{bytes} {binary_bytes_per_sec} {msg} {elapsed}"));
    let mut counted = false;
    while ended.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
        if let Some((entries, bytes)) = progress.total().filter(|_| !counted) {
            counted = true;
            bar.set_length(bytes);
            bar.set_style(style(&format!(
                "{{bar:24}} {{bytes}} of {{total_bytes}}, {{binary_bytes_per_sec}}, {{msg}} of {entries}, {{eta}} left"
            )));
        }
        bar.set_position(progress.bytes());
        bar.set_message(format!("{} entries", progress.entries()));
    }
    bar.finish_and_clear();
}
