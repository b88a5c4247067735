//! Credit: how much each side may send before the other has made room (virtio 1.3, section 5.10.6.3).
//!
//! Counters run modulo 2^32 and are compared by difference only.

/// Never wait longer than this many forwarded bytes before telling the guest; its window may be no larger
/// than 256 KiB whatever we offer, and half a window keeps it sending.
const UPDATE_AFTER: u32 = 128 * 1024;

/// What we may send to the guest.
#[derive(Debug, Default)]
pub struct SendCredit {
    sent: u32,
    peer_alloc: u32,
    peer_forwarded: u32,
}

impl SendCredit {
    /// Takes what a header of the guest says.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_alloc = buf_alloc;
        self.peer_forwarded = fwd_cnt;
    }

    /// Bytes that may be sent now. A guest that shrank its buffer, or counts wrongly, leaves none.
    pub fn available(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// `count` bytes were sent.
    pub fn spend(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }

    /// The guest's own buffer size.
    pub fn peer_alloc(&self) -> u32 {
        self.peer_alloc
    }
}

/// What the guest may send to us.
#[derive(Debug)]
pub struct ReceiveCredit {
    alloc: u32,
    received: u32,
    forwarded: u32,
    told: u32,
}

impl ReceiveCredit {
    /// We keep up to `alloc` bytes for the reader on the host.
    pub fn new(alloc: u32) -> Self {
        Self { alloc, received: 0, forwarded: 0, told: 0 }
    }

    /// The guest sent `count` bytes. False: more than it had credit for.
    pub fn receive(&mut self, count: u32) -> bool {
        let waiting = self.received.wrapping_sub(self.forwarded);
        if u64::from(waiting) + u64::from(count) > u64::from(self.alloc) {
            return false;
        }
        self.received = self.received.wrapping_add(count);
        true
    }

    /// `count` received bytes went on to the reader, or were dropped because nobody will read them.
    pub fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Enough was forwarded for the guest to hear of it, given the size of its own buffer.
    ///
    /// Drivers cap their window at their own buffer size, so the threshold must not be above half of that either,
    /// or a guest with a small buffer would wait for ever.
    pub fn update_due(&self, peer_alloc: u32) -> bool {
        let untold = self.forwarded.wrapping_sub(self.told);
        let threshold = UPDATE_AFTER.min(self.alloc / 2).min(peer_alloc / 2).max(1);
        untold >= threshold
    }

    /// `buf_alloc` and `fwd_cnt` for a header that goes to the guest now.
    pub fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.alloc, self.forwarded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn a_shrunken_peer_buffer_leaves_no_credit() {
        let mut credit = SendCredit::default();
        credit.learn(100, 0);
        credit.spend(80);
        credit.learn(50, 0);
        assert_eq!(credit.available(), 0);
        credit.learn(50, 60);
        assert_eq!(credit.available(), 30);
    }

    #[test]
    fn a_guest_with_a_tiny_buffer_hears_of_every_byte() {
        let mut credit = ReceiveCredit::new(256 * 1024);
        assert!(credit.receive(1));
        credit.forward(1);
        assert!(credit.update_due(1));
        assert!(!credit.update_due(256 * 1024));
    }

    proptest! {
        #[test]
        fn sending_within_the_credit_never_overruns_the_peer(
            start in any::<u32>(),
            alloc in 1u32..1 << 20,
            steps in proptest::collection::vec((1u32..1 << 16, 0u32..1 << 16), 1..200),
        ) {
            let mut credit = SendCredit { sent: start, peer_alloc: alloc, peer_forwarded: start };
            let (mut buffered, mut forwarded) = (0u32, start);
            for (want, take) in steps {
                let count = want.min(credit.available());
                credit.spend(count);
                buffered += count;
                prop_assert!(buffered <= alloc);
                let take = take.min(buffered);
                buffered -= take;
                forwarded = forwarded.wrapping_add(take);
                credit.learn(alloc, forwarded);
                prop_assert_eq!(credit.available(), alloc - buffered);
            }
        }

        /// The guest sees only what `tell` told it, tells are sent only when due, and it is never stuck.
        #[test]
        fn a_guest_that_keeps_to_its_credit_is_neither_refused_nor_starved(
            start in any::<u32>(),
            alloc in 2u32..1 << 20,
            own in 2u32..1 << 20,
            steps in proptest::collection::vec(1u32..1 << 16, 1..300),
        ) {
            let mut ours = ReceiveCredit { alloc, received: start, forwarded: start, told: start };
            let mut guest = SendCredit { sent: start, peer_alloc: alloc, peer_forwarded: start };
            for want in steps {
                // A driver caps its window at its own buffer.
                let in_flight = guest.sent.wrapping_sub(guest.peer_forwarded);
                let count = want.min(guest.available()).min(own.saturating_sub(in_flight));
                prop_assert!(count > 0, "starved");
                guest.spend(count);
                prop_assert!(ours.receive(count), "refused");
                ours.forward(count);
                if ours.update_due(own) {
                    let (alloc, forwarded) = ours.tell();
                    guest.learn(alloc, forwarded);
                }
            }
        }

        #[test]
        fn one_byte_too_many_is_refused(start in any::<u32>(), alloc in 1u32..1 << 30) {
            let mut credit = ReceiveCredit { alloc, received: start, forwarded: start, told: start };
            prop_assert!(credit.receive(alloc));
            prop_assert!(!credit.receive(1));
            credit.forward(1);
            prop_assert!(credit.receive(1));
        }
    }
}
