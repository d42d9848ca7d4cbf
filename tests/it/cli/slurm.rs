//! Private sessions in the jobs of a real batch system, which ends all processes of a job with it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::private::{NAMESPACE, is_possible, supervisors};
use crate::support::{
    Run, TestEnv, finish, has, is_alive, mounts_below, run, run_for, skip, skip_allowed, wait_for,
};

/// The configuration of one node that is also the controller.
const CONFIGURATION: &str = "\
ClusterName=envfs
SlurmctldHost=@HOST@(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=@DIR@/munge/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
StateSaveLocation=@DIR@/state
SlurmdSpoolDir=@DIR@/spool
SlurmctldPidFile=@DIR@/slurmctld.pid
SlurmdPidFile=@DIR@/slurmd.pid
SlurmctldLogFile=@DIR@/log/ctld.log
SlurmdLogFile=@DIR@/log/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
NodeName=@HOST@ NodeAddr=127.0.0.1 NodeHostname=@HOST@ CPUs=@CPUS@ RealMemory=500 State=UNKNOWN
PartitionName=main Nodes=@HOST@ Default=YES MaxTime=10 State=UP OverSubscribe=FORCE:8
PlugStackConfig=@DIR@/plugstack.conf
";

/// A batch system with one node.
struct Slurm {
    dir: PathBuf,
}

impl Slurm {
    /// Starts it. Reports a skip and returns None where it cannot run.
    fn start(env: &TestEnv) -> Option<Slurm> {
        for program in ["slurmctld", "slurmd", "srun", "munged"] {
            if !has(program) {
                return None;
            }
        }
        if !nix::unistd::geteuid().is_root() {
            skip_allowed("Slurm needs root");
            return None;
        }
        let Ok(Some(munge)) = User::from_name("munge") else {
            skip_allowed("no user munge");
            return None;
        };
        let slurm = Slurm {
            dir: env.root().join("slurm"),
        };
        fs::create_dir(&slurm.dir).unwrap();
        fs::set_permissions(&slurm.dir, PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["munge", "spool", "state", "log"] {
            let dir = slurm.dir.join(name);
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let own = |path: &Path| {
            let (uid, gid) = (munge.uid.as_raw(), munge.gid.as_raw());
            std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
        };
        let key = slurm.dir.join("munge/munge.key");
        fs::write(&key, vec![7; 1024]).unwrap();
        fs::set_permissions(&key, PermissionsExt::from_mode(0o400)).unwrap();
        own(&key);
        own(&slurm.dir.join("munge"));
        let host = run(Command::new("hostname")).ok().line().to_owned();
        let host = host.split('.').next().unwrap().to_owned();
        let cpus = std::thread::available_parallelism().unwrap().get().min(2);
        let text = CONFIGURATION
            .replace("@DIR@", slurm.dir.to_str().unwrap())
            .replace("@HOST@", &host)
            .replace("@CPUS@", &cpus.to_string());
        fs::write(slurm.dir.join("slurm.conf"), text).unwrap();
        fs::write(slurm.dir.join("plugstack.conf"), slurm.plugins(env)).unwrap();
        let plugin = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            true => "autodetect",
            false => "cgroup/v1",
        };
        let text =
            format!("CgroupPlugin={plugin}\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n");
        fs::write(slurm.dir.join("cgroup.conf"), text).unwrap();
        slurm.start_daemons(&host).then_some(slurm)
    }

    /// Compiles the plugin of `examples/`. Returns the list of plugins.
    fn plugins(&self, env: &TestEnv) -> String {
        if !Path::new("/usr/include/slurm/spank.h").exists() || !has("gcc") {
            skip("no headers of Slurm");
            return String::new();
        }
        let plugin = self.dir.join("spank_envfs.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/slurm/spank_envfs.c");
        let mut compiler = Command::new("gcc");
        compiler
            .args([
                "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o",
            ])
            .args([&plugin, &source]);
        run(compiler).ok();
        format!(
            "required {} program={}\n",
            plugin.display(),
            env.program().display()
        )
    }

    fn start_daemons(&self, host: &str) -> bool {
        let mut munged = Command::new("runuser");
        munged.args(["-u", "munge", "--", "munged", "--force"]);
        for (option, file) in [
            ("key-file", "munge.key"),
            ("socket", "munge.sock"),
            ("pid-file", "munged.pid"),
            ("log-file", "munged.log"),
            ("seed-file", "munged.seed"),
        ] {
            munged.arg(format!("--{option}={}/munge/{file}", self.dir.display()));
        }
        let configuration = self.dir.join("slurm.conf");
        let mut controller = Command::new("slurmctld");
        controller.arg("-f").arg(&configuration);
        let mut node = Command::new("slurmd");
        node.arg("-f").arg(&configuration).args(["-N", host]);
        for mut command in [munged, controller, node] {
            command.env("SLURM_CONF", &configuration);
            command.stdin(Stdio::null()).current_dir("/");
            // They become daemons, so their output must not be a pipe that is waited for.
            command.stdout(Stdio::null()).stderr(Stdio::null());
            if !command.status().is_ok_and(|status| status.success()) {
                skip_allowed(&format!("{command:?} failed"));
                return false;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut first = Command::new("srun");
            first
                .env("SLURM_CONF", &configuration)
                .args(["--immediate=5", "true"])
                .stdin(Stdio::null())
                .current_dir("/");
            let done = run_for(first, 60);
            if done.code == 0 {
                return true;
            }
            if Instant::now() > deadline {
                skip_allowed(&format!("Slurm runs no job here: {}", done.err));
                return false;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Returns the processes that serve steps of jobs of this batch system.
    fn steps(&self) -> Vec<Pid> {
        let configuration = format!("SLURM_CONF={}", self.dir.join("slurm.conf").display());
        let is_ours = |pid: &i32| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let variables = read("environ");
            let mut variables = variables.split(|byte| *byte == 0);
            read("comm").starts_with(b"slurmstepd")
                && variables.any(|variable| variable == configuration.as_bytes())
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(is_ours).map(Pid::from_raw).collect()
    }

    /// Returns a command of Slurm as the user of a store.
    fn command(&self, env: &TestEnv, program: &str, words: &[&str]) -> Command {
        let mut command = env.command(program);
        command
            .env("SLURM_CONF", self.dir.join("slurm.conf"))
            // The login session's directory does not exist in jobs.
            .env_remove("XDG_RUNTIME_DIR")
            .args(words);
        command
    }

    fn run(&self, env: &TestEnv, program: &str, words: &[&str]) -> Run {
        run(self.command(env, program, words))
    }

    /// Starts a job that reads files again and again until it is told to end. Prints the namespace
    /// of each of its tasks.
    fn reader(&self, env: &TestEnv, name: &str, tasks: u32) -> Child {
        let prefix = env.prefix("e");
        let work = env.work();
        let script = format!(
            "{NAMESPACE}; echo >'{0}/{name}-ready-'$SLURM_PROCID\n\
             while ! test -e '{0}/{name}-stop'; do\n\
             cat '{1}/lib/a.txt' '{1}/lib/deep/er/file' >/dev/null || exit 9; sleep 0.05; done",
            work.display(),
            prefix.display()
        );
        let tasks_word = format!("-n{tasks}");
        let job_name = format!("--job-name={name}");
        let mut words = vec!["-s", &tasks_word, &job_name];
        words.extend([
            "envfs",
            "run",
            "--private",
            "--read-only",
            "e",
            "sh",
            "-c",
            &script,
        ]);
        let mut command = self.command(env, "srun", &words);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for("the tasks of the job", || {
            (0..tasks).all(|task| work.join(format!("{name}-ready-{task}")).exists())
        });
        child
    }

    fn stop(&self, env: &TestEnv, name: &str, child: Child) -> Run {
        env.write(&env.work().join(format!("{name}-stop")), "");
        finish(child, name.to_owned())
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for file in ["slurmd.pid", "slurmctld.pid", "munge/munged.pid"] {
            let text = fs::read_to_string(self.dir.join(file)).unwrap_or_default();
            let Ok(pid) = text.trim().parse().map(Pid::from_raw) else {
                continue;
            };
            kill(pid, Signal::SIGTERM).ok();
            let deadline = Instant::now() + Duration::from_secs(20);
            while is_alive(pid) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // The node's daemon leaves one behind that keeps its control groups.
        for pid in self.steps() {
            kill(pid, Signal::SIGKILL).ok();
        }
    }
}

/// All in one test, because the batch system uses fixed ports.
#[test]
fn jobs_of_a_batch_system_have_sessions_of_their_own() {
    let Some(env) = TestEnv::ordinary().filter(is_possible) else {
        return;
    };
    env.import_sample("e");
    let Some(slurm) = Slurm::start(&env) else {
        return;
    };
    jobs_on_one_node_do_not_take_mounts_from_each_other(&env, &slurm);
    a_mount_of_a_job_is_not_joined_by_others_and_ends_with_it(&env, &slurm);
    the_plugin_runs_tasks_in_an_environment(&env, &slurm);
    tasks_of_an_array_see_one_revision_each_while_others_are_committed(&env, &slurm);
}

fn a_mount_of_a_job_is_not_joined_by_others_and_ends_with_it(env: &TestEnv, slurm: &Slurm) {
    let prefix = env.prefix("e");
    let work = env.work();
    let at = work.display();
    let script = format!(
        "envfs mount e && echo >'{at}/m-ready'; while ! test -e '{at}/m-stop'; do sleep 0.05; done"
    );
    let words = ["-s", "-n1", "--job-name=m", "sh", "-c", &script];
    let job = slurm
        .command(env, "srun", &words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the mount of the job", || work.join("m-ready").exists());
    assert_eq!(mounts_below(&prefix).len(), 1);
    env.envfs(&["mount", "--read-only", "e"])
        .fails(5, &["another job", "envfs run --private"]);
    let other = |words: &[&str]| slurm.run(env, "srun", &[&["-s", "-n1"][..], words].concat());
    let activate = ["envfs", "activate", "--shell", "posix", "e"];
    other(&activate).fails(5, &["another job", "envfs shell --private"]);
    assert_eq!(other(&["envfs", "run", "e", "tool"]).ok().out, "tool\n");
    slurm.stop(env, "m", job).ok();
    // At most a dead mount is left, which the next command replaces.
    env.envfs(&["mount", "--read-only", "e"]).ok();
    assert_eq!(mounts_below(&prefix).len(), 1);
    let read = format!("cat '{}/lib/c.txt'", prefix.display());
    assert_eq!(env.sh(&read).ok().out, "gamma\n");
    // That one belongs to no job, so jobs may use it.
    other(&activate).ok();
    env.envfs(&["unmount", "e"]).ok();
    assert!(mounts_below(env.root()).is_empty());
}

fn the_plugin_runs_tasks_in_an_environment(env: &TestEnv, slurm: &Slurm) {
    if !slurm.dir.join("spank_envfs.so").exists() {
        return;
    }
    let look = format!("tool; {NAMESPACE}; echo $SLURM_PROCID >&2");
    let words = ["-s", "-n2", "--envfs=e", "sh", "-c", &look];
    let done = slurm.run(env, "srun", &words).ok();
    let mut lines: Vec<&str> = done.out.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), 4, "{done}");
    assert!(
        lines[0].starts_with("mnt:[") && lines[0] == lines[1],
        "{done}"
    );
    assert_eq!(lines[2..], ["tool", "tool"]);
    let status = slurm.run(env, "srun", &["--envfs=e@1", "sh", "-c", "exit 3"]);
    assert_eq!(status.code, 3, "{status}");
    slurm
        .run(env, "srun", &["--envfs=absent", "true"])
        .fails(125, &["absent"]);
    assert_eq!(slurm.run(env, "srun", &["true"]).code, 0);
    wait_for("the end of all", || supervisors(env).is_empty());
}

fn jobs_on_one_node_do_not_take_mounts_from_each_other(env: &TestEnv, slurm: &Slurm) {
    // A ends first, B reads on.
    let a = slurm.reader(env, "a", 1);
    let b = slurm.reader(env, "b", 2);
    assert_eq!(supervisors(env).len(), 2, "one for each job");
    let a = slurm.stop(env, "a", a).ok();
    wait_for("the end of the supervisor", || supervisors(env).len() == 1);
    // C is cancelled.
    let c = slurm.reader(env, "c", 1);
    assert_eq!(supervisors(env).len(), 2);
    slurm.run(env, "scancel", &["--name=c"]).ok();
    assert_ne!(finish(c, "c".to_owned()).code, 0);
    wait_for("the end of the supervisor", || supervisors(env).len() == 1);
    let b = slurm.stop(env, "b", b).ok();
    let mut tasks = b.out.lines();
    let namespace = tasks.next().unwrap();
    assert!(namespace.starts_with("mnt:["), "{b}");
    assert_eq!(tasks.next(), Some(namespace), "the tasks share a mount");
    assert_ne!(a.line(), namespace);
    wait_for("the end of all", || supervisors(env).is_empty());
    assert!(mounts_below(env.root()).is_empty());
}

fn tasks_of_an_array_see_one_revision_each_while_others_are_committed(
    env: &TestEnv,
    slurm: &Slurm,
) {
    let prefix = env.mount("e");
    let change = |number: usize| {
        let at = prefix.display();
        env.sh(&format!(
            "echo {number} >'{at}/one'; echo {number} >'{at}/two'"
        ))
        .ok();
        env.envfs(&["commit", "-q", "-m", "change", "e"]).ok();
        env.envfs(&["gc", "-q", "--keep", "1", "e"]).ok();
    };
    change(0);
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8; do cmp '{0}/one' '{0}/two' || exit 9; sleep 0.1; done; tool",
        prefix.display()
    );
    let output = env.work().join("task-%a");
    let wrapped = format!("--wrap=envfs run --private --read-only e sh -c \"{script}\"");
    let output_word = format!("--output={}", output.display());
    let words = ["--wait", "--array=1-64", &output_word, &wrapped];
    let array = slurm
        .command(env, "sbatch", &words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(array.id().try_into().unwrap());
    let mut number = 0;
    let deadline = Instant::now() + Duration::from_secs(120);
    while is_alive(pid) && Instant::now() < deadline {
        number += 1;
        change(number);
    }
    finish(array, "sbatch".to_owned()).ok();
    for task in 1..=64 {
        let text = fs::read_to_string(env.work().join(format!("task-{task}"))).unwrap();
        assert_eq!(text, "tool\n", "task {task}");
    }
    assert!(number > 1, "{number} commits");
    wait_for("the end of all", || supervisors(env).is_empty());
}
