//! Processes that wait at a place in the program until the test lets them go on.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{TestEnv, wait_for};

/// Places at which processes wait for the test (`pause.` faults).
pub(crate) struct Gate {
    dir: PathBuf,
}

impl Gate {
    pub(crate) fn new(env: &TestEnv) -> Gate {
        let dir = env.work().join("gate");
        fs::create_dir(&dir).unwrap();
        env.user().give(&dir);
        Gate { dir }
    }

    /// Makes a command, and the daemon that it starts, wait at places, given as one text with
    /// commas.
    pub(crate) fn arm<'a>(&self, command: &'a mut Command, places: &str) -> &'a mut Command {
        command
            .env("ENVFS_FAULT", places)
            .env("ENVFS_PAUSE", &self.dir)
    }

    /// Starts a command that waits at a place until it is let go, once.
    pub(crate) fn start(&self, mut command: Command, place: &str) -> Child {
        let child = self
            .arm(&mut command, place)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        self.wait(place);
        child
    }

    /// Waits until a process waits at a place.
    pub(crate) fn wait(&self, place: &str) {
        let here = self.dir.join(format!("{place}.here"));
        wait_for(place, || here.exists());
    }

    /// Lets the process go that waits at a place.
    pub(crate) fn open(&self, place: &str) {
        fs::write(self.dir.join(format!("{place}.go")), "").unwrap();
    }
}
