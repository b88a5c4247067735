use super::*;

fn powers() -> (tempfile::TempDir, Powers) {
    let folder = tempfile::tempdir().unwrap();
    let bus = Manner::Bus(format!("unix:path={}", folder.path().join("no-bus").display()));
    let powers = Powers::new(bus, folder.path().join("etc"), folder.path().join("run"));
    (folder, powers)
}

fn power(action: PowerAction, force: bool) -> Power {
    Power { action, force, script_timeout_ms: None }
}

#[tokio::test]
async fn where_nobody_can_it_is_refused_with_the_reasons() {
    let (_folder, powers) = powers();
    let outcome = powers.perform(&power(PowerAction::POWEROFF, true), AGAIN).await.unwrap();
    let refused = outcome.reply.refused.unwrap();
    assert_eq!(refused.kind, ErrorKind::OS);
    assert!(outcome.going.is_none());
}

#[tokio::test]
async fn a_refusal_is_overridden_by_the_same_request_and_by_no_other() {
    let (_folder, powers) = powers();
    assert!(!powers.asked_again(PowerAction::POWEROFF));
    powers.perform(&power(PowerAction::POWEROFF, false), AGAIN).await.unwrap();
    assert!(powers.asked_again(PowerAction::POWEROFF));
    assert!(!powers.asked_again(PowerAction::REBOOT));
    let minute_ago = Instant::now().checked_sub(AGAIN).unwrap();
    powers.state().refused = Some((PowerAction::POWEROFF, minute_ago));
    assert!(!powers.asked_again(PowerAction::POWEROFF));
}

#[test]
fn one_action_at_a_time_unless_forced() {
    let (_folder, powers) = powers();
    assert_eq!(powers.begin(&power(PowerAction::REBOOT, false), false), Ok(false));
    let busy = powers.begin(&power(PowerAction::POWEROFF, false), false).unwrap_err();
    assert_eq!(busy.kind, ErrorKind::BUSY);
    assert!(busy.message.contains("reboot"), "{busy}");
    assert_eq!(powers.begin(&power(PowerAction::POWEROFF, true), true), Ok(true));
    drop(End(&powers));
    assert_eq!(powers.begin(&power(PowerAction::POWEROFF, false), false), Ok(false));
}
