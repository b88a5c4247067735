//! To be told that this machine has slept: a timer on the wall clock, far away, that the kernel takes away when it resumes
//! and when somebody sets the clock (`timerfd_create(2)`, `TFD_TIMER_CANCEL_ON_SET`). Nothing runs until then.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Daemon;
use crate::async_fd;
use crate::time::{MS, kernel};

/// When the timer would fire: in 2200.
const FAR: Duration = Duration::from_secs(7_258_118_400);
/// Less than that is no sleep: the two clocks are read one after the other.
const SLEEP: i64 = 100 * MS;

/// Tells the daemon's clocks of each sleep, until that cannot be seen any more.
pub(super) async fn follow(daemon: Arc<Daemon>) {
    let followed = async {
        let watch = Watch::new()?;
        let mut slept = kernel::slept()?;
        loop {
            watch.cancelled().await?;
            let now = kernel::slept()?;
            if now - slept > SLEEP {
                daemon.times.woke();
            }
            slept = now;
        }
    };
    let error: io::Result<()> = followed.await;
    if let Err(error) = error {
        tracing::warn!("This machine's own sleep is not seen: {error}");
    }
}

struct Watch {
    timer: TimerFd,
    /// The same timer, in the event loop.
    ready: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        arm(&timer)?;
        let ready = async_fd::register(timer.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { timer, ready })
    }

    /// Waits until the kernel takes the timer away, and sets it again.
    async fn cancelled(&self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let mut count = [0; 8];
            match nix::unistd::read(&self.timer, &mut count) {
                Err(Errno::ECANCELED) => return Ok(arm(&self.timer)?),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
                Ok(_) => arm(&self.timer)?,
            }
        }
    }
}

fn arm(timer: &TimerFd) -> nix::Result<()> {
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    timer.set(Expiration::OneShot(TimeSpec::from_duration(FAR)), flags)
}
