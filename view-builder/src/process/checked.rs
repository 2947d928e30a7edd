//! Groups of arguments that are checked as a whole when the command line is read: a wrong one ends the program before anything is done.
//!
//! clap checks single values, and prints a wrong one. These groups hold secrets, or values that are right only together.

use std::ops::Deref;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Settings that are made of a group of arguments.
pub trait Check: Sized {
    /// The arguments as they are given.
    type Given: Args;

    /// # Errors
    /// Names the argument that is wrong, and says what would be right.
    fn check(given: Self::Given) -> Result<Self, String>;
}

/// Such settings as a group of a clap struct: `#[command(flatten)] kafka: Checked<Kafka>`.
#[derive(Clone, Debug)]
pub struct Checked<T> {
    settings: T,
}

impl<T> Deref for Checked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.settings
    }
}

impl<T: Check> FromArgMatches for Checked<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = T::Given::from_arg_matches(matches)?;
        match T::check(given) {
            Ok(settings) => Ok(Self { settings }),
            Err(reason) => Err(clap::Error::raw(ErrorKind::ValueValidation, format!("{reason}\n"))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Check> Args for Checked<T> {
    fn augment_args(command: Command) -> Command {
        T::Given::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        T::Given::augment_args_for_update(command)
    }
}
