use super::*;
use k8s_openapi::api::core::v1::PodStatus;

/// A cluster of one job, whose pods end as they are told.
struct World {
    job: Job,
    pods: Vec<Arc<Pod>>,
    made: usize,
    now: i64,
}

impl World {
    fn new(spec: JobSpec) -> Self {
        let mut job = Job { spec: Some(spec), ..Job::default() };
        job.metadata.name = Some("j".into());
        Self { job, pods: Vec::new(), made: 0, now: 1000 }
    }

    /// One step, with its actions done.
    fn step(&mut self) -> Step {
        let step = plan(&self.job, &self.pods, Timestamp::from_second(self.now).unwrap());
        if let Some(status) = &step.status {
            self.job.status = Some(status.clone());
        }
        for pod in &step.strip {
            self.change(&uid(pod), |p| p.metadata.finalizers = None);
        }
        let gone: Vec<_> = step.delete.iter().map(|p| uid(p)).collect();
        self.pods.retain(|p| !gone.contains(&uid(p)));
        for index in &step.create {
            self.made += 1;
            let mut pod = Pod::default();
            pod.metadata.uid = Some(format!("u{}", self.made));
            pod.metadata.finalizers = Some(vec![FINALIZER.into()]);
            pod.metadata.annotations = index.map(|i| [(INDEX.to_owned(), i.to_string())].into());
            self.pods.push(Arc::new(pod));
        }
        step
    }

    fn settle(&mut self) {
        for _ in 0..20 {
            let step = self.step();
            if step.status.is_none() && step.create.is_empty() && step.delete.is_empty() && step.strip.is_empty() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.job.status);
    }

    fn change(&mut self, id: &str, with: impl Fn(&mut Pod)) {
        for pod in &mut self.pods {
            if uid(pod) == id {
                let mut changed = (**pod).clone();
                with(&mut changed);
                *pod = Arc::new(changed);
            }
        }
    }

    fn end(&mut self, id: &str, phase: &str) {
        self.change(id, |p| p.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() }));
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap()
    }
}

fn spec(completions: Option<i32>, parallelism: i32) -> JobSpec {
    JobSpec { completions, parallelism: Some(parallelism), backoff_limit: Some(2), ..JobSpec::default() }
}

#[test]
fn job_runs_to_its_completions() {
    let mut world = World::new(spec(Some(3), 2));
    world.settle();
    assert_eq!(world.status().active, Some(2));
    world.end("u1", "Succeeded");
    world.end("u2", "Succeeded");
    world.settle();
    assert_eq!((world.status().active, world.status().succeeded), (Some(1), Some(2)));
    world.end("u3", "Succeeded");
    world.settle();
    assert!(has(&world.status(), "Complete"));
    assert_eq!(world.status().succeeded, Some(3));
    assert!(world.status().completion_time.is_some());
}

#[test]
fn job_fails_beyond_its_limit_and_each_failure_counts_once() {
    let mut world = World::new(spec(Some(1), 1));
    for round in 1..=3 {
        world.settle();
        world.end(&format!("u{round}"), "Failed");
    }
    world.settle();
    assert_eq!(world.status().failed, Some(3));
    assert!(has(&world.status(), "Failed"));
    assert!(!has(&world.status(), "Complete"));
}

#[test]
fn indexes_are_each_done_once() {
    let mut world = World::new(JobSpec { completion_mode: Some("Indexed".into()), ..spec(Some(3), 3) });
    world.settle();
    world.end("u2", "Failed");
    world.settle();
    assert_eq!(index_of(world.pods.last().unwrap()), Some(1));
    for id in ["u1", "u3", "u4"] {
        world.end(id, "Succeeded");
    }
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0-2"));
    assert!(has(&world.status(), "Complete"));
}

#[test]
fn a_smaller_job_forgets_its_indexes_beyond() {
    let mut world = World::new(JobSpec { completion_mode: Some("Indexed".into()), ..spec(Some(3), 3) });
    world.settle();
    world.end("u3", "Succeeded");
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("2"));
    let spec = world.job.spec.as_mut().unwrap();
    (spec.completions, spec.parallelism) = (Some(2), Some(2));
    world.settle();
    assert_eq!((world.status().completed_indexes, world.status().succeeded), (None, None));
    for id in ["u1", "u2"] {
        world.end(id, "Succeeded");
    }
    world.settle();
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0,1"));
    assert!(has(&world.status(), "Complete"));
}

#[test]
fn suspension_ends_pods_and_resumption_starts_anew() {
    let mut world = World::new(spec(Some(1), 1));
    world.settle();
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.settle();
    assert!(world.pods.is_empty() && has(&world.status(), "Suspended"));
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!(world.status().active, Some(1));
}

#[test]
fn deadline_ends_the_job() {
    let mut world = World::new(JobSpec { active_deadline_seconds: Some(30), ..spec(Some(1), 1) });
    world.settle();
    world.now += 30;
    world.settle();
    let failed = world.status().conditions.unwrap().into_iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("DeadlineExceeded"));
    assert!(world.pods.is_empty());
}
