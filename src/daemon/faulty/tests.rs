//! Every act of a small job, failing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::*;

/// Lives that run at the same time: they wait for the store's threads more than they work.
const SIDE_BY_SIDE: usize = 12;

/// Lives through each fault that `faults` names for an act; prints how those lives ended.
fn every_act_may_fail(faults: impl Fn(u64) -> Vec<Fault>) {
    let (end, acts) = live_through(None);
    assert_eq!(end, End::Done);
    // A fault can make more acts, and the order of threads moves them.
    let cases: Vec<_> =
        (1..=acts + 5).flat_map(|at| faults(at).into_iter().map(move |fault| (at, fault))).collect();
    let (next, ends, failed) = (AtomicU64::new(0), Mutex::new([0_u32; 3]), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(usize::try_from(number).unwrap()) else { return };
                    match catch_unwind(AssertUnwindSafe(|| live_through(Some(*case)))) {
                        Ok((end, _)) => {
                            let place = match end {
                                End::Done => 0,
                                End::Failed(_) => 1,
                                End::Waiting => 2,
                            };
                            ends.lock().unwrap()[place] += 1;
                        }
                        Err(_) => failed.lock().unwrap().push(*case),
                    }
                }
            });
        }
    });
    let [done, ended, waiting] = ends.into_inner().unwrap();
    println!(
        "{acts} acts, {} faults: {done} went on, {ended} ended, {waiting} waited for the disk",
        cases.len()
    );
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "broken by {failed:?}");
}

#[test]
fn every_act_of_a_small_job_may_fail() {
    every_act_may_fail(|at| vec![FAULTS[usize::try_from(at).unwrap() % FAULTS.len()]]);
}

#[test]
#[ignore = "takes a minute: see CONTRIBUTING"]
fn every_act_of_a_small_job_may_fail_in_every_way() {
    every_act_may_fail(|_| FAULTS.to_vec());
}
