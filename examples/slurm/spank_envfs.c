/*
 * A plugin for Slurm: `srun --envfs=NAME COMMAND` runs each task as `envfs run NAME COMMAND`.
 *
 * It runs in the process of the task, as the user, so images are opened with the rights of the
 * user, and the session belongs to the job step: tasks of a step on one node share one mount.
 *
 *   gcc -shared -fPIC -O2 -o /usr/lib/x86_64-linux-gnu/slurm-wlm/spank_envfs.so spank_envfs.c
 *   echo 'optional spank_envfs.so program=/usr/bin/envfs' >> /etc/slurm/plugstack.conf
 */
#include <signal.h>
#include <slurm/spank.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

SPANK_PLUGIN(envfs, 1);

static const char *program = "/usr/bin/envfs";
static char *environment;

static int take_name(int value, const char *name, int remote)
{
	(void)value;
	(void)remote;
	if (name == NULL || *name == '\0' || *name == '-')
		return -1;
	free(environment);
	environment = strdup(name);
	return environment == NULL ? -1 : 0;
}

static struct spank_option option = {
	"envfs", "NAME", "Run the tasks in this environment of envfs, or NAME@REV.", 1, 0, take_name
};

int slurm_spank_init(spank_t spank, int count, char **arguments)
{
	static const char key[] = "program=";

	for (int i = 0; i < count; i++)
		if (strncmp(arguments[i], key, sizeof(key) - 1) == 0)
			program = arguments[i] + sizeof(key) - 1;
	return spank_option_register(spank, &option) == ESPANK_SUCCESS ? 0 : -1;
}

/* Called in the process that becomes the task. Becomes `envfs run`, which becomes the task. */
int slurm_spank_task_init(spank_t spank, int count, char **arguments)
{
	char **words, **variables, **line;
	sigset_t none;
	int number;

	(void)count;
	(void)arguments;
	if (environment == NULL)
		return 0;
	if (spank_get_item(spank, S_JOB_ARGV, &number, &words) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_ENV, &variables) != ESPANK_SUCCESS)
		return -1;
	line = calloc((size_t)number + 4, sizeof(*line));
	if (line == NULL)
		return -1;
	line[0] = (char *)program;
	line[1] = "run";
	line[2] = environment;
	memcpy(line + 3, words, (size_t)number * sizeof(*line));
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(program, line, variables);
	slurm_error("envfs: cannot execute %s: %m", program);
	return -1;
}
