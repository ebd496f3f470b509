"""How far a download is: what is wanted, as well as that is known by now, and each file of it.

Responsible for: the numbers of all files together. Leaves to others: those of each (`task`), telling them
(`announcing`).
"""

from collections.abc import Container

from modelcache.events import Progress
from modelcache.model import Digest
from modelcache.order import Fetched, Order
from modelcache.outcome import File, Model
from modelcache.states import EVENT_STATUS, State
from modelcache.task import Task


class Tally:
    """Changed by the thread that carries the download out; read by anyone at any time."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.tasks = [Task(file) for file in order.files]
        self.stage = State.PENDING  # of the whole model; while files are fetched, theirs count
        self.where = ""  # who is asked what the model consists of

    @property
    def state(self) -> State:
        """Bytes that move count more than bytes that are verified."""
        stages = {task.stage for task in self.tasks if task.is_running}
        order = (State.DOWNLOADING, State.RESUMING, State.VERIFYING, State.RESOLVING)
        return next((stage for stage in order if stage in stages), self.stage)

    # -- what changes -------------------------------------------------------------------------------------------------

    def follow(self, order: Order) -> None:
        """What is wanted is known better now."""
        if order.files != self.order.files:
            self.tasks = [Task(file) for file in order.files]
        self.order = order

    def found(self, result: Model | File) -> None:
        """All of it is here."""
        here = {file.name: file for file in (result.files if isinstance(result, Model) else (result,))}
        for task in self.tasks:
            file = here[task.file.path]
            task.done = Fetched(task.file, Digest("sha256", file.sha256), file.size, "hit", "cache")

    def lost(self, paths: Container[str]) -> None:
        """These files are to be fetched again."""
        self.tasks = [Task(task.file) if task.file.path in paths else task for task in self.tasks]

    def begin_again(self) -> None:
        """What is done is not done again."""
        self.stage = State.PENDING
        self.tasks = [Task(task.file, task.done) for task in self.tasks]

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def completed(self) -> int:
        """Looks at every file: for a round of reports, not for each."""
        return sum(task.done is not None for task in self.tasks)

    @property
    def done(self) -> list[Fetched]:
        return [task.done for task in self.tasks if task.done]

    @property
    def errors(self) -> list[BaseException]:
        return [task.error for task in self.tasks if task.error]

    @property
    def kept_bytes(self) -> int:
        """What of the unfinished files a later run need not fetch again."""
        return sum(task.kept for task in self.tasks if not task.done)

    def sample(self, state: State) -> Progress:
        """The progress event of the whole model."""
        tasks = self.tasks
        return Progress(
            model=self.order.id,
            status=EVENT_STATUS[state],
            bytes_downloaded=sum(task.here for task in tasks),
            total_bytes=sum(task.total for task in tasks),
            speed=sum(task.speed for task in tasks),
            retry_count=sum(task.retries for task in tasks),
            source=next((task.source for task in reversed(tasks) if task.source), ""),
            gateway=next((task.gateway for task in reversed(tasks) if task.gateway), ""),
            completed_files=self.completed,
            total_files=len(tasks),
        )
