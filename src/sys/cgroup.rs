//! Tells jobs of batch systems apart: a batch system ends all processes of a job with it.

use std::fs;

/// The variables with which batch systems name the job, the step or the array task of a process.
const VARIABLES: [&str; 8] = [
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "LSB_JOBINDEX",
    "SGE_JOB_ID",
    "SGE_TASK_ID",
    "FLUX_JOB_ID",
];

/// The processes that end together: a job step, a login session, a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// A text that differs between scopes of this host.
    pub name: String,
    /// Whether it belongs to a batch system, which ends its processes with the job.
    pub is_job: bool,
    /// The control groups of the job with all its steps, if it has such.
    job: Option<String>,
}

impl Scope {
    /// Returns the scope of this process.
    pub fn own() -> Scope {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let variables = VARIABLES.iter().filter_map(|name| {
            let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
            Some(format!("{name}={value}"))
        });
        Scope::of(&groups, variables)
    }

    /// Returns the scope of another process by its control groups; `None` if they are not readable.
    pub fn of_process(pid: u32) -> Option<Scope> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some(Scope::of(&groups, std::iter::empty()))
    }

    /// Parses `/proc/PID/cgroup`.
    fn of(groups: &str, variables: impl Iterator<Item = String>) -> Scope {
        let mut is_job = false;
        let mut jobs = Vec::new();
        let mut parts: Vec<String> = groups
            .lines()
            .map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let controllers = fields.next().unwrap_or_default();
                let (path, job) = of_job(fields.next().unwrap_or_default());
                is_job |= job.is_some();
                jobs.extend(job.map(str::to_owned));
                format!("{controllers}:{path}")
            })
            .collect();
        parts.sort();
        jobs.sort();
        jobs.dedup();
        for variable in variables {
            is_job = true;
            parts.push(variable);
        }
        Scope {
            name: parts.join("\n"),
            is_job,
            job: (!jobs.is_empty()).then(|| jobs.join("\n")),
        }
    }

    /// Returns whether a process belongs to a job that this process does not belong to, as far as
    /// control groups tell.
    pub fn is_of_other_job(pid: u32) -> bool {
        let job = |pid| Scope::of_process(pid).and_then(|scope| scope.job);
        job(pid).is_some_and(|theirs| job(std::process::id()) != Some(theirs))
    }
}

/// Returns the part of a control group's path that names the job step, and that of the job, if any.
/// Slurm has further groups below it, one for each task; all end with the step.
fn of_job(path: &str) -> (&str, Option<&str>) {
    let up_to = |end: usize| path.get(..end).unwrap_or(path).trim_end_matches('/');
    let mut end = 0;
    let mut job = None;
    for part in path.split_inclusive('/') {
        end += part.len();
        let part = part.trim_end_matches('/');
        if job.is_some() && part.starts_with("step_") {
            return (up_to(end), job);
        }
        if is_numbered(part, "job_") {
            job = Some(up_to(end));
        }
    }
    let others = ["pbs_jobs.service", "pbspro", "htcondor", "lsf", "flux"];
    let is_of_other = path.split('/').any(|part| {
        others
            .iter()
            .any(|name| part.split(['.', '-', '_']).next() == Some(name) || part == *name)
    });
    (path, job.or_else(|| is_of_other.then_some(path)))
}

fn is_numbered(part: &str, prefix: &str) -> bool {
    part.strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(groups: &str) -> Scope {
        Scope::of(groups, std::iter::empty())
    }

    #[test]
    fn tasks_of_one_step_share_a_scope_and_steps_do_not() {
        let v2 = "0::/system.slice/node7_slurmstepd.scope/job_12/step_0/user/task_";
        let tasks = [0, 1].map(|task| of(&format!("{v2}{task}\n")));
        assert_eq!(tasks[0], tasks[1]);
        assert!(tasks[0].is_job && tasks[0].name.ends_with("/job_12/step_0"));
        let batch = of("0::/system.slice/node7_slurmstepd.scope/job_12/step_batch/user/task_0\n");
        let other = of("0::/system.slice/node7_slurmstepd.scope/job_13/step_0/user/task_0\n");
        assert!(batch.is_job && other.is_job);
        assert!(batch.name != tasks[0].name && other.name != tasks[0].name);
        assert!(batch.job == tasks[0].job && other.job != tasks[0].job);
        let v1 = |task: u32| {
            of(&format!(
                "4:memory:/slurm/uid_7/job_5/step_2/task_{task}\n2:freezer:/slurm/uid_7/job_5/step_2\n"
            ))
        };
        assert_eq!(v1(0), v1(9));
        assert!(v1(0).is_job);
    }

    #[test]
    fn a_login_session_is_no_job() {
        for groups in [
            "0::/user.slice/user-1000.slice/session-3.scope\n",
            "0::/\n",
            "0::/system.slice/cron.service\n",
            "0::/system.slice/job_server/step_x\n",
            "",
        ] {
            assert!(!of(groups).is_job, "{groups}");
        }
        assert!(of("0::/pbs_jobs.service/jobid/7.host\n").is_job);
    }

    #[test]
    fn a_job_without_control_groups_is_told_by_its_variables() {
        let job = |id: u32| Scope::of("0::/\n", [format!("SLURM_JOB_ID={id}")].into_iter());
        assert!(job(1).is_job);
        assert_ne!(job(1), job(2));
    }
}
