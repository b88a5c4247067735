//! The vCPUs' threads: begun together, ended together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, Scope};

use super::bus::Bus;
use super::{End, MachineError, Outcome};
use crate::hypervisor::{Bind, Exit, HypervisorError, Kick, Vcpu, Vm};

/// Where the first vCPU begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) entry: u64,
    pub(super) tree: u64,
}

/// Runs `count` vCPUs until one of them, or somebody else who has the sender, says how it ended.
pub(super) fn run(
    vm: &dyn Vm,
    count: u32,
    start: &Start,
    bus: &Bus,
    ended: &Sender<End>,
    ends: &Receiver<End>,
) -> Result<Outcome, MachineError> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Each says what kicks it and waits for its word to go; a word that never comes sends it home.
        let mut go = Vec::new();
        let mut kickers = Vec::new();
        let (bound, binds) = mpsc::channel();
        let begun = (0..count).try_for_each(|index| {
            let (sender, receiver) = mpsc::channel();
            go.push(sender);
            let start = (index == 0).then_some(*start);
            let thread =
                Thread { bind: vm.vcpu(index), start, bus, stop: &stop, bound: bound.clone(), go: receiver };
            thread.begin(scope, index, ended.clone())
        });
        drop(bound);
        begun.map_err(|source| MachineError::Host { what: "thread for a vCPU", source })?;
        for kicker in binds {
            kickers.push(kicker?);
        }
        vm.start()?;
        for word in go {
            let _ = word.send(());
        }
        // There is a sender in this call, so there is always an answer.
        let end = ends.recv().unwrap_or(Ok(Outcome::Stopped));
        stop.store(true, Ordering::Relaxed);
        for kicker in &kickers {
            kicker.kick();
        }
        Ok(end?)
    })
}

struct Thread<'a> {
    bind: Box<dyn Bind>,
    start: Option<Start>,
    bus: &'a Bus,
    stop: &'a AtomicBool,
    bound: Sender<Result<Box<dyn Kick>, HypervisorError>>,
    go: Receiver<()>,
}

impl<'a> Thread<'a> {
    fn begin<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        index: u32,
        ended: Sender<End>,
    ) -> std::io::Result<()>
    where
        'a: 'scope,
    {
        let body = move || {
            let end = match self.live() {
                Ok(None) => return,
                Ok(Some(outcome)) => Ok(outcome),
                Err(error) => Err(error),
            };
            let _ = ended.send(end);
        };
        thread::Builder::new().name(format!("vcpu{index}")).spawn_scoped(scope, body).map(drop)
    }

    /// Binds, waits for the others, runs. None: somebody else's word ended the machine.
    fn live(self) -> Result<Option<Outcome>, HypervisorError> {
        let Self { bind, start, bus, stop, bound, go } = self;
        let made = bind.bind().and_then(|mut vcpu| {
            if let Some(Start { entry, tree }) = start {
                vcpu.begin_at(entry, tree)?;
            }
            Ok(vcpu)
        });
        let mut vcpu = match made {
            Ok(vcpu) => vcpu,
            Err(error) => {
                // Said once, to whoever waits for all to be bound.
                let _ = bound.send(Err(error));
                return Ok(None);
            }
        };
        let _ = bound.send(Ok(vcpu.kicker()));
        drop(bound);
        if go.recv().is_err() {
            return Ok(None);
        }
        serve(vcpu.as_mut(), bus, stop)
    }
}

fn serve(vcpu: &mut dyn Vcpu, bus: &Bus, stop: &AtomicBool) -> Result<Option<Outcome>, HypervisorError> {
    while !stop.load(Ordering::Relaxed) {
        match vcpu.run()? {
            Exit::Read { address, size } => vcpu.answer(bus.read(address, size)),
            Exit::Write { address, size, value } => bus.write(address, size, value),
            Exit::PoweredOff => return Ok(Some(Outcome::PoweredOff)),
            Exit::Reset => return Ok(Some(Outcome::Reset)),
            Exit::Kicked => (),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Condvar, Mutex};

    use super::*;
    use crate::hypervisor::{Edge, Gic, Line};
    use crate::io::Bell;
    use crate::virtio::Memory;

    /// A machine whose vCPUs do what a test says: `None` is a guest that computes for ever.
    struct Fake {
        begins: Vec<Result<Option<Exit>, ()>>,
        entered: Arc<Mutex<Vec<(u64, u64)>>>,
    }

    struct FakeVcpu {
        exit: Result<Option<Exit>, ()>,
        entered: Arc<Mutex<Vec<(u64, u64)>>>,
        kicked: Kicked,
    }

    #[derive(Clone, Default)]
    struct Kicked(Arc<(Mutex<bool>, Condvar)>);

    fn refused() -> HypervisorError {
        HypervisorError::Call { act: "make a vCPU", source: io::ErrorKind::OutOfMemory.into() }
    }

    impl Vm for Fake {
        fn map(&self, _: &Memory) -> Result<(), HypervisorError> {
            Ok(())
        }
        fn create_gic(&self, _: &Gic) -> Result<(), HypervisorError> {
            Ok(())
        }
        fn vcpu(&self, index: u32) -> Box<dyn Bind> {
            let exit = self.begins[index as usize];
            Box::new(FakeVcpu { exit, entered: Arc::clone(&self.entered), kicked: Kicked::default() })
        }
        fn start(&self) -> Result<(), HypervisorError> {
            Ok(())
        }
        fn line(&self, _: u32) -> Box<dyn Line> {
            unreachable!("nothing here interrupts")
        }
        fn edge(&self, _: u32) -> Box<dyn Edge> {
            unreachable!("nothing here interrupts")
        }
        fn doorbell(&self, _: u64, _: u32, _: &Bell) -> Result<(), HypervisorError> {
            unreachable!("nothing here is notified")
        }
    }

    impl Bind for FakeVcpu {
        fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, HypervisorError> {
            if self.exit.is_ok() { Ok(self) } else { Err(refused()) }
        }
    }

    impl Vcpu for FakeVcpu {
        fn begin_at(&mut self, entry: u64, argument: u64) -> Result<(), HypervisorError> {
            self.entered.lock().unwrap().push((entry, argument));
            Ok(())
        }
        fn run(&mut self) -> Result<Exit, HypervisorError> {
            if let Ok(Some(exit)) = self.exit {
                return Ok(exit);
            }
            let (kicked, changed) = &*self.kicked.0;
            drop(changed.wait_while(kicked.lock().unwrap(), |kicked| !*kicked).unwrap());
            Ok(Exit::Kicked)
        }
        fn answer(&mut self, _: u64) {}
        fn kicker(&self) -> Box<dyn Kick> {
            Box::new(self.kicked.clone())
        }
    }

    impl Kick for Kicked {
        fn kick(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_all();
        }
    }

    fn run_these(
        begins: Vec<Result<Option<Exit>, ()>>,
        plug: bool,
    ) -> (Result<Outcome, MachineError>, Vec<(u64, u64)>) {
        let count = u32::try_from(begins.len()).unwrap();
        let machine = Fake { begins, entered: Arc::default() };
        let (ended, ends) = mpsc::channel();
        if plug {
            ended.send(Ok(Outcome::Stopped)).unwrap();
        }
        let start = Start { entry: 7, tree: 9 };
        let result = run(&machine, count, &start, &Bus::default(), &ended, &ends);
        (result, Arc::into_inner(machine.entered).unwrap().into_inner().unwrap())
    }

    #[test]
    fn one_that_switches_off_ends_all_and_only_the_first_has_a_begin() {
        let (result, entered) = run_these(vec![Ok(None), Ok(Some(Exit::PoweredOff)), Ok(None)], false);
        assert_eq!((result.unwrap(), entered), (Outcome::PoweredOff, vec![(7, 9)]));
        assert_eq!(run_these(vec![Ok(Some(Exit::Reset))], false).0.unwrap(), Outcome::Reset);
    }

    #[test]
    fn a_pulled_plug_ends_a_guest_that_never_would() {
        assert_eq!(run_these(vec![Ok(None), Ok(None)], true).0.unwrap(), Outcome::Stopped);
    }

    #[test]
    fn one_that_cannot_be_made_lets_none_run() {
        let (result, _) = run_these(vec![Ok(Some(Exit::PoweredOff)), Err(()), Ok(None)], false);
        assert!(result.unwrap_err().to_string().contains("make a vCPU"));
    }
}
