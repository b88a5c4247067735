//! What the host's clock is, out of a few exchanges.
//!
//! Of an exchange four times are known: the guest's before it asked and after it was answered, the host's when it read
//! and when it wrote. The host's clock is then known to within half of what the exchange took beyond the host's own part
//! (RFC 5905, 8). The best exchange is the shortest one: what makes one longer is waiting, on one side or the other.

use hospes_protocol::time::{Source, Stamp};

/// Host times outside of these are no times: before 1980, after 2242.
const PLAUSIBLE: std::ops::Range<u64> = 315_532_800_000_000_000..8_600_000_000_000_000_000;

/// One exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What the host's clock was ahead of this machine's `CLOCK_BOOTTIME`, in nanoseconds.
    pub ahead: i64,
    /// Nanoseconds by which that may be wrong, either way.
    pub error: u64,
    /// Nanoseconds that the exchange took, the host's own part taken off.
    pub round_trip: u64,
    /// Where it comes from.
    pub source: Source,
}

/// Why a stamp is no sample. The host is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The host's clock is in another age.
    #[error("The host says that it is {0} ns after 1970")]
    Implausible(u64),
    /// The host wrote before it read, or took longer than the exchange.
    #[error("The host says that it took {host} ns of an exchange of {all} ns")]
    Impossible {
        /// What the host says that it took.
        host: i128,
        /// What all of it took.
        all: i64,
    },
}

impl Sample {
    /// An exchange that began at `asked` and ended at `answered`, both of `CLOCK_BOOTTIME`.
    ///
    /// # Errors
    /// [`SampleError`].
    pub fn of(asked: i64, stamp: Stamp, answered: i64) -> Result<Self, SampleError> {
        let implausible = [stamp.received_ns, stamp.sent_ns].into_iter().find(|ns| !PLAUSIBLE.contains(ns));
        if let Some(ns) = implausible {
            return Err(SampleError::Implausible(ns));
        }
        let (received, sent) = (i128::from(stamp.received_ns), i128::from(stamp.sent_ns));
        let all = answered.saturating_sub(asked);
        let host = sent - received;
        // A host whose clock is set while it answers, or goes faster than ours, is not the guest's to judge: its samples
        // are of no use, and the next exchange is.
        if !(0..=i128::from(all.max(0))).contains(&host) {
            return Err(SampleError::Impossible { host, all });
        }
        let impossible = SampleError::Impossible { host, all };
        let ahead = (received + sent - i128::from(asked) - i128::from(answered)) / 2;
        let round_trip = u64::try_from(i128::from(all) - host).map_err(|_| impossible)?;
        let ahead = i64::try_from(ahead).map_err(|_| impossible)?;
        Ok(Self { ahead, error: round_trip / 2, round_trip, source: Source::VSOCK })
    }

    fn agrees(&self, other: &Self) -> bool {
        // Two clocks that drift apart by 500 ppm are 50 µs apart after the longest of bursts.
        const DRIFT: u64 = 50_000;
        self.ahead.abs_diff(other.ahead) <= self.error.saturating_add(other.error).saturating_add(DRIFT)
    }
}

/// The best of a few exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Burst {
    best: Option<Sample>,
    count: u32,
}

impl Burst {
    /// Exchanges of one burst at most.
    pub const MOST: u32 = 8;
    /// Exchanges of a burst whose best is good.
    pub const ENOUGH: u32 = 4;
    /// A round trip in nanoseconds that is as good as it gets: more exchanges are not worth their wake-ups.
    const GOOD: u64 = 1_000_000;

    /// Takes one in. Where it cannot be true together with what came before, the clock was torn in between, and what came
    /// before is of another time.
    pub fn take(&mut self, sample: Sample) {
        self.count += 1;
        self.best = match self.best {
            Some(best) if best.agrees(&sample) && best.round_trip <= sample.round_trip => Some(best),
            _ => Some(sample),
        };
    }

    /// Whether more exchanges are not worth it.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        let good = self.best.is_some_and(|best| best.round_trip <= Self::GOOD);
        self.count >= if good { Self::ENOUGH } else { Self::MOST }
    }

    /// The best so far.
    #[must_use]
    pub const fn best(&self) -> Option<Sample> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_789_000_000_000_000_000;

    fn stamp(received_ns: u64, sent_ns: u64) -> Stamp {
        Stamp { serial: 1, received_ns, sent_ns }
    }

    #[test]
    fn the_truth_is_within_half_of_the_round_trip() {
        // The host is NOW ahead; the way there takes 300 ns, the way back 100, the host 50.
        let sample = Sample::of(1000, stamp(NOW + 1300, NOW + 1350), 1450).unwrap();
        assert_eq!(sample.round_trip, 400);
        assert_eq!(sample.error, 200);
        assert!(sample.ahead.abs_diff(i64::try_from(NOW).unwrap()) <= sample.error, "{sample:?}");
    }

    #[test]
    fn a_host_that_says_what_cannot_be_is_not_believed() {
        assert_eq!(Sample::of(0, stamp(5, 6), 10), Err(SampleError::Implausible(5)));
        assert!(matches!(Sample::of(0, stamp(u64::MAX, u64::MAX), 10), Err(SampleError::Implausible(_))));
        assert!(matches!(Sample::of(0, stamp(NOW + 1, NOW), 10), Err(SampleError::Impossible { .. })));
        assert!(matches!(Sample::of(0, stamp(NOW, NOW + 11), 10), Err(SampleError::Impossible { .. })));
        assert!(matches!(Sample::of(10, stamp(NOW, NOW), 0), Err(SampleError::Impossible { .. })));
    }

    #[test]
    fn the_shortest_exchange_counts_and_one_of_a_torn_clock_begins_anew() {
        let sample =
            |ahead, round_trip| Sample { ahead, error: round_trip / 2, round_trip, source: Source::VSOCK };
        let mut burst = Burst::default();
        for (ahead, round_trip) in [(100, 900_000), (0, 200_000), (200, 400_000)] {
            burst.take(sample(ahead, round_trip));
        }
        assert_eq!(burst.best().unwrap().round_trip, 200_000);
        assert!(!burst.is_enough());
        burst.take(sample(5_000_000_000, 600_000));
        assert_eq!(burst.best().unwrap().ahead, 5_000_000_000);
        assert!(burst.is_enough());
        let mut slow = Burst::default();
        for _ in 0..Burst::MOST {
            assert!(!slow.is_enough());
            slow.take(sample(0, 30_000_000));
        }
        assert!(slow.is_enough());
    }

    proptest! {
        #[test]
        fn whatever_the_ways_take_the_bound_holds(
            offset in 0u64..4_000_000_000_000_000_000, there in 0u64..1_000_000_000, host in 0u64..1_000_000_000,
            back in 0u64..1_000_000_000, asked in 0i64..1_000_000_000_000_000,
        ) {
            let offset = offset + PLAUSIBLE.start;
            let at = u64::try_from(asked).unwrap();
            let stamp = stamp(offset + at + there, offset + at + there + host);
            let answered = asked + i64::try_from(there + host + back).unwrap();
            let sample = Sample::of(asked, stamp, answered).unwrap();
            prop_assert!(sample.ahead.abs_diff(i64::try_from(offset).unwrap()) <= sample.error + 1);
        }

        #[test]
        fn no_stamp_is_too_strange(a in any::<u64>(), b in any::<u64>(), asked in any::<i64>(), answered in any::<i64>()) {
            let mut burst = Burst::default();
            if let Ok(sample) = Sample::of(asked, stamp(a, b), answered) {
                burst.take(sample);
            }
        }
    }
}
