//! The variables of conda.
//!
//! Conda numbers the active environments from 1; `CONDA_SHLVL` is the number of the top one.
//!
//! ```text
//! CONDA_PREFIX, CONDA_DEFAULT_ENV, CONDA_PROMPT_MODIFIER    the top environment
//! CONDA_PREFIX_n                                            the prefix of the n-th, below the top
//! CONDA_STACKED_n                                           the n-th was stacked: the one below is still in PATH
//! __CONDA_SHLVL_n_NAME                                      the value of NAME that the environment above the n-th replaced
//! ```
//!
//! Activation of a conda environment writes these as conda does, so `conda activate` and
//! `conda deactivate` work on top of it and also end it. Deactivation therefore looks at the place
//! that the environment has now, see [`Position`]. In POSIX shells conda does not unset variables
//! but sets them to the empty value.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::{MAX_LEVEL, Nesting, Planner, Settings, State};
use crate::shell::facts::{PrefixFacts, UNSET, is_variable_name};

/// The place of one of our environments among conda's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// It is not a conda environment.
    NotConda,
    /// It is the top one.
    Top,
    /// `conda activate` has put others on top. If the first of them is not stacked, conda has
    /// sourced our `deactivate.d` scripts already.
    Covered { is_stacked: bool },
    /// `conda deactivate` has ended it, and sourced the scripts.
    Gone,
}

impl Position {
    /// Returns whether its `deactivate.d` scripts have not been sourced yet.
    pub(super) fn is_running(self) -> bool {
        match self {
            Position::NotConda | Position::Top => true,
            Position::Covered { is_stacked } => is_stacked,
            Position::Gone => false,
        }
    }
}

/// A numbered variable of conda.
enum Numbered {
    /// `CONDA_PREFIX_n`.
    Prefix(u32),
    /// `CONDA_STACKED_n`.
    Stacked(u32),
    /// `__CONDA_SHLVL_n_NAME`.
    Saved(u32),
}

impl Numbered {
    fn parse(name: &str) -> Option<Numbered> {
        if let Some(number) = name.strip_prefix("CONDA_PREFIX_") {
            return number.parse().ok().map(Numbered::Prefix);
        }
        if let Some(number) = name.strip_prefix("CONDA_STACKED_") {
            return number.parse().ok().map(Numbered::Stacked);
        }
        let (number, _) = name.strip_prefix("__CONDA_SHLVL_")?.split_once('_')?;
        number.parse().ok().map(Numbered::Saved)
    }

    /// Returns whether conda has a use for it when this many environments are active.
    fn is_used_at(&self, level: u32) -> bool {
        match *self {
            Numbered::Prefix(number) | Numbered::Saved(number) => number < level,
            Numbered::Stacked(number) => number <= level,
        }
    }
}

/// Returns whether a variable is one in which conda keeps its own state.
fn is_own(name: &str) -> bool {
    let plain = [
        "CONDA_PREFIX",
        "CONDA_SHLVL",
        "CONDA_DEFAULT_ENV",
        "CONDA_PROMPT_MODIFIER",
    ];
    plain.contains(&name) || Numbered::parse(name).is_some()
}

impl Planner {
    /// Returns the number of conda's active environments.
    pub(super) fn conda_level(&self) -> u32 {
        self.get("CONDA_SHLVL")
            .and_then(OsStr::to_str)
            .and_then(|text| text.trim().parse().ok())
            .filter(|&level| level < MAX_LEVEL)
            .unwrap_or(0)
    }

    /// Returns the names of the numbered variables that exist.
    pub(super) fn conda_names(&self) -> Vec<String> {
        let names = self.variables.keys().filter_map(|name| name.to_str());
        names
            .filter(|name| Numbered::parse(name).is_some())
            .map(str::to_owned)
            .collect()
    }

    /// Returns the variables that conda's activator would set for the environment as the one with
    /// this number.
    pub(super) fn conda(
        &self,
        facts: &PrefixFacts,
        settings: &Settings,
        level: u32,
    ) -> Vec<(String, OsString)> {
        // The text that `conda` has to replace in the prompt.
        let modifier = settings.prompt.as_deref().unwrap_or_default();
        let modifier = modifier.replace("{name}", &facts.name);
        let below = level.saturating_sub(1);
        let mut set = vec![
            (
                String::from("CONDA_PREFIX"),
                facts.prefix.clone().into_os_string(),
            ),
            (
                String::from("CONDA_SHLVL"),
                OsString::from(level.to_string()),
            ),
            (
                String::from("CONDA_DEFAULT_ENV"),
                OsString::from(&facts.name),
            ),
            (
                String::from("CONDA_PROMPT_MODIFIER"),
                OsString::from(modifier),
            ),
        ];
        if below > 0 {
            if let Some(prefix) = self.get("CONDA_PREFIX") {
                set.push((format!("CONDA_PREFIX_{below}"), prefix.to_owned()));
            }
            if settings.nesting == Nesting::Stack {
                set.push((format!("CONDA_STACKED_{level}"), OsString::from("true")));
            }
        }
        // `conda deactivate` restores these values.
        for name in facts.variables.iter().filter_map(|(name, _)| name.to_str()) {
            if let Some(before) = self.get(name).filter(|_| is_variable_name(name)) {
                set.push((format!("__CONDA_SHLVL_{below}_{name}"), before.to_owned()));
            }
        }
        set
    }

    /// Returns the place of an environment of ours.
    pub(super) fn position(&self, state: &State) -> Position {
        let Some(ours) = state.conda_level else {
            return Position::NotConda;
        };
        let current = self.conda_level();
        let is_at = |name: &str| self.get(name) == Some(state.prefix.0.as_os_str());
        if current == ours && is_at("CONDA_PREFIX") {
            Position::Top
        } else if current > ours && is_at(&format!("CONDA_PREFIX_{ours}")) {
            let flag = self.get(&format!("CONDA_STACKED_{}", ours + 1));
            Position::Covered {
                is_stacked: flag.is_some_and(|flag| !flag.is_empty()),
            }
        } else {
            Position::Gone
        }
    }

    /// Restores the variables that an activation changed.
    pub(super) fn restore_variables(&mut self, state: &State, position: Position) {
        if let (Position::Covered { .. }, Some(ours)) = (position, state.conda_level) {
            self.take_out(state, ours);
        }
        for (name, (before, given)) in &state.variables {
            if !is_variable_name(name) {
                continue;
            }
            let now = self.get(name);
            // Some shells can only empty a variable instead of unsetting it.
            let is_unchanged = match given {
                Some(given) => now == Some(given.0.as_os_str()),
                None => now.is_none_or(OsStr::is_empty),
            };
            // What conda makes of a variable that did not exist, or that the environment unsets.
            let is_emptied = now.is_some_and(OsStr::is_empty) && before.is_none();
            let is_marked = now == Some(OsStr::new(UNSET)) && given.is_none();
            let restore = match (position, is_own(name)) {
                (Position::Top, true) => true,
                (Position::Covered { .. }, true) => false,
                (Position::Gone, true) => is_emptied,
                (Position::Gone, false) => is_unchanged || is_emptied || is_marked,
                (_, _) => is_unchanged || is_marked,
            };
            if restore {
                self.set(name, before.clone().map(|text| text.0));
            }
        }
        if position != Position::NotConda {
            self.remove_leftovers(state);
        }
    }

    /// Removes the environment with this number from below others, whose numbers decrease by one.
    fn take_out(&mut self, state: &State, ours: u32) {
        let top = self.conda_level();
        let was_stacked = |planner: &Planner, level: u32| {
            let flag = planner.get(&format!("CONDA_STACKED_{level}"));
            flag.is_some_and(|flag| !flag.is_empty())
        };
        // The one above now stands directly on the one below, which is in PATH if either was
        // stacked. Nothing is below the first.
        let is_stacked =
            ours > 1 && (was_stacked(self, ours) || was_stacked(self, ours.saturating_add(1)));
        for level in ours..top {
            let above = self
                .get(&format!("CONDA_PREFIX_{}", level + 1))
                .map(OsStr::to_owned);
            self.set(
                &format!("CONDA_PREFIX_{level}"),
                above.filter(|_| level + 1 < top),
            );
            let is_stacked = match level == ours {
                true => is_stacked,
                false => was_stacked(self, level + 1),
            };
            let flag = is_stacked.then(|| OsString::from("true"));
            self.set(&format!("CONDA_STACKED_{level}"), flag);
        }
        self.set(&format!("CONDA_STACKED_{top}"), None);
        self.set("CONDA_SHLVL", Some((top - 1).to_string().into()));

        // The values that the one above replaced may be ours.
        for level in ours..=top {
            let saved = self.saved(level);
            for (name, _) in self.saved(level - 1) {
                self.set(&format!("__CONDA_SHLVL_{}_{name}", level - 1), None);
            }
            for (name, value) in saved {
                let value = match state.variables.get(&name) {
                    Some((before, given))
                        if level == ours && given.as_ref().map(|text| &text.0) == Some(&value) =>
                    {
                        before.clone().map(|text| text.0)
                    }
                    _ => Some(value),
                };
                self.set(&format!("__CONDA_SHLVL_{}_{name}", level - 1), value);
            }
        }
    }

    /// Returns the values that the environment above the one with this number replaced.
    fn saved(&self, level: u32) -> BTreeMap<String, OsString> {
        let start = format!("__CONDA_SHLVL_{level}_");
        let named = self.variables.iter().filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(&start)?;
            Some((name.to_owned(), value.clone()))
        });
        named.collect()
    }

    /// Removes numbered variables that conda leaves behind when it deactivates environments.
    fn remove_leftovers(&mut self, state: &State) {
        let level = self.conda_level();
        let leftovers: Vec<String> = self
            .conda_names()
            .into_iter()
            .filter(|name| !state.conda_names.contains(name))
            .filter(|name| {
                let is_empty = self.get(name).is_some_and(OsStr::is_empty);
                let is_used = Numbered::parse(name).is_some_and(|kind| kind.is_used_at(level));
                let is_saved = name.starts_with("__");
                !is_used || (is_empty && !is_saved)
            })
            .collect();
        for name in leftovers {
            self.set(&name, None);
        }
    }
}
