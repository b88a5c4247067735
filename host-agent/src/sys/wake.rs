//! To be told that this machine has slept, or that its clock was set.

#[cfg(target_os = "linux")]
pub use linux::Watch;
#[cfg(not(target_os = "linux"))]
pub use other::Watch;

/// What happened to this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woke {
    /// The machine has slept.
    Slept,
    /// Somebody set the clock.
    ClockSet,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::time::TimeSpec;
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    use nix::time::clock_gettime;
    use tokio::io::unix::AsyncFd;

    use super::Woke;
    use crate::sys::readiness;

    /// When the timer would fire: in 2200.
    const FAR: Duration = Duration::from_secs(7_258_118_400);
    /// Less than that is no sleep: the two clocks are read one after the other.
    const SLEEP: Duration = Duration::from_millis(100);

    /// A timer on the wall clock, far away, that the kernel takes away when it resumes and when somebody sets the clock
    /// (`timerfd_create(2)`, `TFD_TIMER_CANCEL_ON_SET`). It tells of every sleep, whoever caused it, and of none before it is
    /// over; logind's word comes from whoever asked logind alone.
    #[derive(Debug)]
    pub struct Watch {
        timer: TimerFd,
        /// The same timer, in the event loop.
        ready: AsyncFd<OwnedFd>,
        slept: Duration,
    }

    impl Watch {
        /// Watches from now on.
        ///
        /// # Errors
        /// The operating system's.
        pub fn new() -> io::Result<Self> {
            let timer =
                TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
            arm(&timer)?;
            let ready = readiness::register(timer.as_fd().try_clone_to_owned()?)?;
            Ok(Self { timer, ready, slept: slept()? })
        }

        /// What happens next.
        ///
        /// # Errors
        /// The operating system's.
        pub async fn next(&mut self) -> io::Result<Woke> {
            loop {
                let mut ready = self.ready.readable().await?;
                let mut count = [0; 8];
                match nix::unistd::read(&self.timer, &mut count) {
                    Err(Errno::ECANCELED) => {
                        arm(&self.timer)?;
                        let before = std::mem::replace(&mut self.slept, slept()?);
                        let slept = self.slept.saturating_sub(before) > SLEEP;
                        return Ok(if slept { Woke::Slept } else { Woke::ClockSet });
                    }
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

    /// How long this machine has slept since it was started.
    fn slept() -> nix::Result<Duration> {
        let running = Duration::from(clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?);
        let all = Duration::from(clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?);
        Ok(all.saturating_sub(running))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[tokio::test]
        async fn nothing_is_told_where_nothing_happens() {
            let mut watch = Watch::new().unwrap();
            let told = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
            assert!(told.is_err(), "{told:?}");
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;

    use super::Woke;

    /// Nothing tells here yet.
    #[derive(Debug)]
    pub struct Watch(());

    impl Watch {
        /// Watches nothing.
        ///
        /// # Errors
        /// None.
        pub fn new() -> io::Result<Self> {
            Ok(Self(()))
        }

        /// For ever none.
        ///
        /// # Errors
        /// None.
        pub async fn next(&mut self) -> io::Result<Woke> {
            std::future::pending().await
        }
    }
}
