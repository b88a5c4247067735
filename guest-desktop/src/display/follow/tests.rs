use proptest::prelude::*;

use super::super::layout::Mode;
use super::*;

const WLR: Manners = Manners { ways: &[Way::Listed, Way::Custom], patience: Duration::ZERO, scales: true };
const GNOME: Manners = Manners { ways: &[Way::Listed], patience: Duration::from_secs(6), scales: true };

const fn size(width: u32, height: u32) -> Size {
    Size { width, height }
}

fn mode(size: Size, preferred: bool) -> Mode {
    Mode { size, refresh: 60_000, preferred, scales: Vec::new() }
}

fn output(name: &str, at: Size) -> Output {
    Output {
        name: name.to_owned(),
        size: Some(at),
        refresh: 60_000,
        scale: Scale::ONE,
        position: Position::default(),
        turned: false,
        modes: vec![mode(at, true), mode(size(1024, 768), false)],
    }
}

/// How a desktop takes what it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    Good,
    /// Says no to sizes that it does not list.
    Refuses,
    /// Says yes and does nothing.
    Lies,
    /// Rounds widths to multiples of eight.
    Rounds,
    /// Forgets the scale at each new size.
    Forgets,
}

/// A desktop, a VM's display and a clock.
struct World {
    follow: Follow,
    outputs: Vec<Output>,
    temper: Temper,
    now: Instant,
    applied: u32,
    stirred: u32,
}

impl World {
    fn new(manners: Manners, temper: Temper, outputs: Vec<Output>) -> Self {
        let mut world =
            Self { follow: Follow::default(), outputs, temper, now: Instant::now(), applied: 0, stirred: 0 };
        let offered =
            world.outputs.iter().map(|output| (output.name.clone(), output.size.unwrap())).collect();
        world.offer(offered);
        world.follow.came(manners);
        world.see();
        world.run();
        world
    }

    fn one(temper: Temper) -> Self {
        Self::new(WLR, temper, vec![output("A", size(1280, 800))])
    }

    fn offer(&mut self, sizes: Vec<(String, Size)>) {
        let best = |size| Best { size, refresh: 75_000 };
        let offered = sizes.into_iter().map(|(name, size)| (name, best(size))).collect();
        let action = self.follow.offered(self.now, offered);
        self.obey(action);
    }

    /// A size for A, with no time passing.
    fn resize(&mut self, width: u32, height: u32) {
        let others: Vec<_> =
            self.follow.offered.iter().map(|(name, best)| (name.clone(), best.size)).collect();
        let mut sizes: Vec<_> = others.into_iter().filter(|(name, _)| name != "A").collect();
        sizes.push(("A".to_owned(), size(width, height)));
        self.offer(sizes);
    }

    fn see(&mut self) {
        let action = self.follow.seen(self.now, self.outputs.clone());
        self.obey(action);
    }

    fn obey(&mut self, mut action: Option<Action>) {
        while let Some(Action::Apply { goals, way }) = action {
            self.applied += 1;
            assert!(self.applied < 1000, "no end of it");
            let answer = self.apply(&goals, way);
            action = self.follow.answered(self.now, answer);
            if action.is_none() {
                action = self.follow.seen(self.now, self.outputs.clone());
            }
        }
    }

    fn apply(&mut self, goals: &[Goal], way: Way) -> Result<(), String> {
        assert_eq!(goals.len(), self.outputs.len());
        for (goal, output) in goals.iter().zip(&mut self.outputs) {
            assert!(goal.refresh > 0 && goal.name == output.name);
            let listed = goal.size.is_none_or(|size| output.listed(size).is_some());
            match self.temper {
                Temper::Refuses if goal.size != output.size && !listed => {
                    return Err("no such mode".to_owned());
                }
                Temper::Lies => continue,
                _ => assert!(way == Way::Custom || goal.size == output.size || listed),
            }
            let rounds = self.temper == Temper::Rounds && !listed;
            let changes = goal.size != output.size;
            output.size = goal.size.map(|at| if rounds { size(at.width / 8 * 8, at.height) } else { at });
            output.scale = goal.scale;
            if self.temper == Temper::Forgets && changes {
                output.scale = Scale::ONE;
            }
            output.position = goal.position;
        }
        Ok(())
    }

    /// Lets time pass until nothing is under way.
    fn run(&mut self) {
        while let Some(deadline) = self.follow.deadline() {
            self.now = self.now.max(deadline);
            let action = self.follow.woke(self.now);
            self.obey(action);
        }
        assert!(self.follow.is_settled());
    }

    /// Lets so much time pass that what follows is nobody's answer.
    fn wait(&mut self) {
        self.run();
        self.now += Duration::from_secs(60);
    }

    fn a(&self) -> display::Output {
        self.follow.state().into_iter().find(|output| output.name == "A").unwrap()
    }

    fn want(&mut self, want: Want) -> Result<(), Refusal> {
        let action = self.follow.want(self.now, &[want])?;
        self.obey(action);
        Ok(())
    }
}

#[test]
fn the_screen_follows_the_display_and_a_drag_is_its_end() {
    let mut world = World::one(Temper::Good);
    assert_eq!(world.applied, 0, "nothing is touched that is as it should be");
    for width in 1000..1100 {
        world.resize(width, 700);
        world.now += Duration::from_millis(10);
        let action = world.follow.woke(world.now);
        world.obey(action);
    }
    world.run();
    assert_eq!((world.a().size, world.applied), (Some(size(1099, 700)), 1));
    assert_eq!(world.a().rule, Rule::FOLLOWS);
}

#[test]
fn the_users_scale_outlives_every_size() {
    let mut world = World::one(Temper::Forgets);
    world.wait();
    world.outputs[0].scale = Scale(1500);
    world.see();
    world.run();
    assert_eq!((world.applied, world.a().scale), (0, Scale(1500)));
    for width in [900, 1400, 901] {
        world.resize(width, 700);
        world.wait();
        assert_eq!((world.a().size, world.a().scale), (Some(size(width, 700)), Scale(1500)));
    }
}

#[test]
fn a_mode_that_the_user_chose_stays_until_they_put_it_back_or_the_host_says_so() {
    let mut world = World::one(Temper::Good);
    world.wait();
    let choose = |world: &mut World, at| {
        world.wait();
        world.outputs[0].size = Some(at);
        world.see();
        world.wait();
    };
    choose(&mut world, size(1024, 768));
    world.resize(1600, 900);
    world.wait();
    assert_eq!((world.a().size, world.a().rule), (Some(size(1024, 768)), Rule::USER));
    let action = world.follow.follow(world.now, "").unwrap();
    world.obey(action);
    assert_eq!((world.a().size, world.a().rule), (Some(size(1600, 900)), Rule::FOLLOWS));
    choose(&mut world, size(1024, 768));
    choose(&mut world, size(1600, 900));
    world.resize(800, 600);
    world.wait();
    assert_eq!((world.a().size, world.a().rule), (Some(size(800, 600)), Rule::FOLLOWS));
}

#[test]
fn what_the_host_asks_for_stays_until_the_user_or_the_host_says_otherwise() {
    let mut world = World::one(Temper::Good);
    let want = Want {
        size: Some(size(2560, 1600)),
        scale: Some(Scale(2000)),
        position: Some(Position { x: 5, y: 6 }),
        ..Want::default()
    };
    world.want(want.clone()).unwrap();
    assert_eq!((world.a().size, world.a().scale, world.a().rule), (want.size, Scale(2000), Rule::HOST));
    assert_eq!(world.a().position, Position { x: 5, y: 6 });
    world.resize(1600, 900);
    world.wait();
    assert_eq!(world.a().size, want.size);
    // A compositor that is started anew knows nothing of it.
    world.follow.gone();
    assert!(world.follow.want(world.now, std::slice::from_ref(&want)).is_err());
    world.outputs = vec![output("A", size(1600, 900))];
    world.follow.came(WLR);
    world.see();
    world.wait();
    assert_eq!((world.a().size, world.a().scale, world.a().rule), (want.size, Scale(2000), Rule::HOST));
    world.outputs[0].size = Some(size(1024, 768));
    world.see();
    world.wait();
    assert_eq!((world.a().size, world.a().rule), (Some(size(1024, 768)), Rule::USER));
}

#[test]
fn who_asks_for_what_cannot_be_tried_is_told() {
    let mut world =
        World::new(WLR, Temper::Good, vec![output("A", size(800, 600)), output("B", size(800, 600))]);
    let named =
        |output: &str| Want { output: output.to_owned(), size: Some(size(900, 600)), ..Want::default() };
    assert_eq!(world.want(named("")), Err(Refusal::Several("A, B".into())));
    assert!(matches!(world.want(named("C")), Err(Refusal::NoOutput(..))));
    world.outputs[1].size = None;
    world.see();
    assert!(matches!(world.want(named("B")), Err(Refusal::Off(_))));
    world.want(named("A")).unwrap();
    assert_eq!(world.a().size, Some(size(900, 600)));
    let scale = Some(Scale::ONE);
    let mut world =
        World::new(Manners { scales: false, ..WLR }, Temper::Good, vec![output("A", size(800, 600))]);
    assert_eq!(world.want(Want { scale, ..Want::default() }), Err(Refusal::NoScale));
}

#[test]
fn a_desktop_that_refuses_or_lies_is_named_and_not_pestered() {
    for (temper, word) in [(Temper::Refuses, "refused"), (Temper::Lies, "agreed to 1500x700")] {
        let mut world = World::one(temper);
        world.resize(1500, 700);
        world.wait();
        let problem = world.a().problem.unwrap();
        assert!(problem.contains(word), "{problem}");
        let applied = world.applied;
        for _ in 0..10 {
            world.see();
            world.wait();
        }
        assert_eq!(world.applied, applied);
        world.resize(1501, 700);
        world.wait();
        assert!(world.applied > applied, "another size is another question");
    }
}

#[test]
fn the_nearest_that_a_desktop_has_is_good_enough_and_named() {
    let mut world = World::one(Temper::Rounds);
    world.resize(1733, 911);
    world.wait();
    assert_eq!(world.a().size, Some(size(1728, 911)));
    assert_eq!(world.a().problem.unwrap(), "The desktop has 1728x911 as the nearest to 1733x911");
    assert_eq!((world.applied, world.a().rule), (1, Rule::FOLLOWS));
    world.resize(1600, 900);
    world.wait();
    assert_eq!((world.a().size, world.a().problem), (Some(size(1600, 900)), None));
}

#[test]
fn a_desktop_that_follows_by_itself_is_left_alone() {
    let mut world = World::new(GNOME, Temper::Good, vec![output("A", size(1280, 800))]);
    world.outputs[0].scale = Scale(2000);
    world.wait();
    world.see();
    world.resize(1600, 900);
    world.now += Duration::from_secs(4);
    world.outputs[0] = Output { scale: Scale(2000), ..output("A", size(1600, 900)) };
    world.see();
    world.run();
    assert_eq!(world.applied, 0);
    // It computes the scale anew: the user's is put back.
    world.wait();
    world.resize(1700, 900);
    world.outputs[0] = output("A", size(1700, 900));
    world.see();
    world.run();
    assert_eq!((world.applied, world.a().scale), (1, Scale(2000)));
}

#[test]
fn a_desktop_that_clings_to_an_old_mode_is_told_once_it_lists_the_new_one() {
    let mut world = World::new(GNOME, Temper::Good, vec![output("A", size(1280, 800))]);
    world.resize(1600, 900);
    let began = world.now;
    world.outputs[0].modes.push(mode(size(1600, 900), true));
    world.see();
    world.run();
    assert_eq!((world.a().size, world.applied), (Some(size(1600, 900)), 1));
    assert!(world.now - began < Duration::from_secs(1), "it has heard of the change and stays");
    // One that never lists it is told of, and tried again when it does.
    world.resize(1601, 900);
    world.wait();
    assert!(world.a().problem.unwrap().contains("lists no mode of 1601x900"));
}

#[test]
fn a_scale_that_the_new_size_cannot_have_comes_back_with_one_that_can() {
    let mut world = World::one(Temper::Good);
    world.wait();
    world.outputs[0].scale = Scale(2000);
    world.outputs[0].modes = vec![
        Mode { scales: vec![Scale(1000), Scale(1250)], ..mode(size(700, 500), false) },
        mode(size(1280, 800), true),
    ];
    world.see();
    world.resize(700, 500);
    world.wait();
    assert_eq!((world.a().size, world.a().scale), (Some(size(700, 500)), Scale(1250)));
    world.resize(1280, 800);
    world.wait();
    assert_eq!(world.a().scale, Scale(2000));
}

#[test]
fn what_we_find_is_the_users_choice_unless_it_is_the_lists_own() {
    let found = |at: Size, offered: Size| {
        let mut world = World::one(Temper::Good);
        world.follow.gone();
        world.resize(offered.width, offered.height);
        world.outputs[0].size = Some(at);
        world.follow.came(WLR);
        world.see();
        world.wait();
        (world.a().size.unwrap(), world.a().rule)
    };
    // The list is older than the window: the best of it was nobody's choice.
    assert_eq!(found(size(1280, 800), size(1500, 700)), (size(1500, 700), Rule::FOLLOWS));
    assert_eq!(found(size(1024, 768), size(1500, 700)), (size(1024, 768), Rule::USER));
    assert_eq!(found(size(1500, 700), size(1500, 700)), (size(1500, 700), Rule::FOLLOWS));
}

#[test]
fn what_no_screen_can_have_is_shrunk_and_told() {
    let mut world = World::one(Temper::Good);
    world.resize(1, 1);
    world.wait();
    assert_eq!(world.a().size, Some(Size::LEAST));
    assert_eq!(world.a().problem.unwrap(), "The VM's display offers 1x1, which no screen can have");
    world.resize(8192, 4320);
    world.wait();
    assert!(world.a().size.unwrap().is_sane());
}

#[derive(Debug, Clone)]
enum Step {
    Offer(u32, u32),
    OfferB(u32, u32),
    User(u32, u32),
    Scale(u32),
    Want(u32, u32, u32),
    Follow,
    Plug(bool),
    Restart,
    Wake,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let side = || {
        (
            prop_oneof![Just(1_u32), 600..800_u32, Just(9000)],
            prop_oneof![Just(1_u32), 600..800_u32, Just(5000)],
        )
    };
    let step = prop_oneof![
        4 => side().prop_map(|(width, height)| Step::Offer(width, height)),
        2 => side().prop_map(|(width, height)| Step::OfferB(width, height)),
        2 => (600..800_u32, 600..800_u32).prop_map(|(width, height)| Step::User(width, height)),
        1 => prop_oneof![Just(1000), Just(2000), Just(1333)].prop_map(Step::Scale),
        1 => (600..800_u32, 600..800_u32, 500..8000_u32).prop_map(|(width, height, scale)| Step::Want(width, height, scale)),
        1 => Just(Step::Follow),
        1 => any::<bool>().prop_map(Step::Plug),
        1 => Just(Step::Restart),
        4 => Just(Step::Wake),
        1 => Just(Step::Wait),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    /// Whatever happens, it comes to rest, asks little, and where the desktop is good the last word counts.
    #[test]
    fn it_comes_to_rest(
        steps in steps(),
        temper in prop_oneof![
            Just(Temper::Good), Just(Temper::Refuses), Just(Temper::Lies), Just(Temper::Rounds), Just(Temper::Forgets)
        ],
        manners in prop_oneof![Just(WLR), Just(GNOME)],
    ) {
        let mut world = World::new(manners, temper, vec![output("A", size(1280, 800))]);
        for step in &steps {
            world.applied = 0;
            match *step {
                Step::Offer(width, height) => { world.resize(width, height); world.stirred += 1; }
                Step::OfferB(width, height) => {
                    let a = world.follow.offered["A"].size;
                    world.offer(vec![("A".into(), a), ("B".into(), size(width, height))]);
                }
                Step::User(width, height) => { world.outputs[0].size = Some(size(width, height)); world.see(); }
                Step::Scale(scale) => { world.outputs[0].scale = Scale(scale); world.see(); }
                Step::Want(width, height, scale) => {
                    let (size, scale) = (Some(size(width, height)), Some(Scale(scale)));
                    let _ = world.want(Want { output: "A".into(), size, scale, position: None });
                }
                Step::Follow => {
                    let action = world.follow.follow(world.now, "").unwrap();
                    world.obey(action);
                }
                Step::Plug(there) => {
                    world.outputs.truncate(1);
                    if there { world.outputs.push(output("B", size(700, 700))); }
                    world.see();
                }
                Step::Restart => { world.follow.came(manners); world.see(); }
                Step::Wake => {
                    world.now += Duration::from_millis(30);
                    let action = world.follow.woke(world.now);
                    world.obey(action);
                }
                Step::Wait => world.wait(),
            }
            prop_assert!(world.applied <= 6, "{} at once", world.applied);
        }
        world.wait();
        if temper == Temper::Good && manners.ways.contains(&Way::Custom) {
            for output in world.follow.state() {
                let offered = output.offered.map(Size::clamped);
                if output.rule == Rule::FOLLOWS && offered.is_some() {
                    prop_assert_eq!(output.size, offered);
                }
            }
            let action = world.follow.follow(world.now, "").unwrap();
            world.obey(action);
            world.wait();
            prop_assert_eq!(world.a().size, world.a().offered.map(Size::clamped));
        }
    }
}
