"""Tasks of mteb whose few texts lie here."""

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

PASSAGES = [
    "list.sort() sorts the list in place and returns None.",
    "Iterate over an open file to read it line by line.",
    "The Zen of Python, by Tim Peters.",
]


def about(name, kind, score):
    return TaskMetadata(
        name=name,
        type=kind,
        main_score=score,
        description="A few texts.",
        reference=None,
        dataset={"path": "none", "revision": "none"},
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2024-01-01", "2024-01-01"),
        domains=[],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )


class TinyRetrieval(AbsTaskRetrieval):
    metadata = about("TinyRetrieval", "Retrieval", "ndcg_at_10")

    def load_data(self, *args, **kwargs):
        corpus = [{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(PASSAGES)]
        queries = [{"id": f"q{i}", "text": text} for i, text in enumerate(PASSAGES)]
        split = RetrievalSplitData(
            corpus=Dataset.from_list(corpus),
            queries=Dataset.from_list(queries),
            relevant_docs={f"q{i}": {f"d{i}": 1} for i in range(len(PASSAGES))},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class TinySTS(AbsTaskSTS):
    metadata = about("TinySTS", "STS", "cosine_spearman")

    def load_data(self, *args, **kwargs):
        rows = {
            "sentence1": [PASSAGES[0]] * 3,
            "sentence2": [PASSAGES[0], PASSAGES[0] + " It is fast.", PASSAGES[2]],
            "score": [5.0, 4.0, 0.0],
        }
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


class TinyClassification(AbsTaskClassification):
    metadata = about("TinyClassification", "Classification", "accuracy")
    samples_per_label = 2
    n_experiments = 2

    def load_data(self, *args, **kwargs):
        rows = {"text": [*PASSAGES[:2], *PASSAGES[:2]], "label": [0, 1, 0, 1]}
        split = Dataset.from_dict(rows)
        self.dataset = DatasetDict({"train": split, "test": split})
        self.data_loaded = True
