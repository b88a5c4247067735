//! Nothing in the lab waits without an end.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// A moment by which something has to have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    /// So long from now.
    pub fn after(limit: Duration) -> Self {
        Self { start: Instant::now(), limit }
    }

    /// How long is left; zero when it has passed.
    pub fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed())
    }

    /// How long it has been.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Asks again and again until there is an answer. `what` completes "waiting for …" in the error.
    pub fn poll<T>(&self, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if self.left().is_zero() {
                bail!("Gave up after {} s waiting for {what}", self.limit.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}
