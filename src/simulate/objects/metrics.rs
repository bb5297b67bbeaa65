//! The figures of a training that never happens: losses that fall and accuracies that rise, the same for the
//! same number of steps.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::page::with;
use super::run::Api;

/// Steps that are reported, of each fine-tune: more would only be longer.
const REPORTED_MAX: u64 = 50;

/// How long a training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) epochs: u64,
    pub(super) steps_per_epoch: u64,
    pub(super) has_validation: bool,
}

/// What is known after one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Metrics {
    pub(super) step: u64,
    pub(super) train_loss: f64,
    pub(super) train_accuracy: f64,
    /// Loss and accuracy on the validation file, if there is one.
    pub(super) valid: Option<(f64, f64)>,
}

impl Extent {
    pub(super) fn new(examples: u64, batch_size: u64, epochs: u64, has_validation: bool) -> Self {
        let steps_per_epoch = examples.div_ceil(batch_size.max(1)).max(1);
        Self { epochs: epochs.max(1), steps_per_epoch, has_validation }
    }

    pub(super) fn steps(self) -> u64 {
        self.epochs.saturating_mul(self.steps_per_epoch)
    }

    /// The steps that are reported, evenly spread, the last one among them.
    pub(super) fn reported(self) -> impl Iterator<Item = u64> {
        let steps = self.steps();
        let count = steps.min(REPORTED_MAX);
        (1..=count).map(move |index| {
            let step = u128::from(steps) * u128::from(index) / u128::from(count);
            u64::try_from(step).unwrap_or(u64::MAX)
        })
    }

    pub(super) fn at(self, step: u64) -> Metrics {
        let progress = part(step, self.steps());
        let train_loss = round(0.2 + 2.0 * (1.0 - progress).powi(2));
        let train_accuracy = round(0.98 - 0.5 * (1.0 - progress).powi(2));
        let valid = self.has_validation.then(|| (round(train_loss + 0.05), round(train_accuracy - 0.02)));
        Metrics { step, train_loss, train_accuracy, valid }
    }

    /// The file of results as this interface writes it.
    pub(super) fn csv(self, api: Api) -> String {
        let mut text = match api {
            Api::Jobs => "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n",
            Api::Legacy => {
                "step,elapsed_tokens,elapsed_examples,training_loss,training_sequence_accuracy,\
                 training_token_accuracy,validation_loss,validation_token_accuracy\n"
            }
        }
        .to_owned();
        for step in self.reported() {
            let Metrics { train_loss, train_accuracy, valid, .. } = self.at(step);
            let valid = valid.map_or_else(|| ",".to_owned(), |(loss, accuracy)| format!("{loss},{accuracy}"));
            let between = match api {
                Api::Jobs => format!("{train_loss},{train_accuracy}"),
                Api::Legacy => format!("{},{step},{train_loss},0,{train_accuracy}", step * 64),
            };
            writeln!(text, "{step},{between},{valid}").expect("a string takes all that is written");
        }
        text
    }
}

impl Metrics {
    /// Of an event or a checkpoint.
    pub(super) fn object(&self) -> Value {
        let object = json!({
            "step": self.step,
            "train_loss": self.train_loss,
            "train_mean_token_accuracy": self.train_accuracy,
        });
        let valid = self.valid.map(|(loss, accuracy)| {
            [("valid_loss", json!(loss)), ("valid_mean_token_accuracy", json!(accuracy))]
        });
        with(object, valid.into_iter().flatten())
    }
}

/// `step / steps`, in 0 to 1.
pub(super) fn part(step: u64, steps: u64) -> f64 {
    let thousandths = u128::from(step.min(steps)) * 10_000 / u128::from(steps.max(1));
    f64::from(u32::try_from(thousandths).unwrap_or(u32::MAX)) / 10_000.0
}

fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reported_step_has_a_line_and_the_last_is_reported() {
        for (examples, batch_size, epochs) in [(10, 1, 3), (1, 256, 1), (100_000, 2, 50)] {
            let extent = Extent::new(examples, batch_size, epochs, true);
            let steps: Vec<u64> = extent.reported().collect();
            assert!(steps.len() <= 50 && steps.is_sorted_by(|a, b| a < b));
            assert_eq!(steps.last(), Some(&extent.steps()));
            for api in [Api::Jobs, Api::Legacy] {
                let text = extent.csv(api);
                assert_eq!(text.lines().count(), steps.len() + 1);
                let columns = text.lines().next().unwrap().split(',').count();
                assert!(text.lines().all(|line| line.split(',').count() == columns), "{text}");
            }
        }
    }

    #[test]
    fn losses_fall_and_accuracies_rise() {
        let extent = Extent::new(20, 1, 3, false);
        let (first, last) = (extent.at(1), extent.at(60));
        assert!(first.train_loss > last.train_loss && first.train_accuracy < last.train_accuracy);
        assert_eq!(last.valid, None);
        assert!(last.object().get("valid_loss").is_none());
    }
}
