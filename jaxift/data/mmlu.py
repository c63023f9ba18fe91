"""MMLU's 57 subjects, and which of them belong to a domain of the study.

A subject's subcategory is that of the benchmark's authors (Hendrycks et al. 2021); the domains' subcategories are those
of Ren et al. 2024.
"""

from jaxift.config import MmluSubjects

_SUBJECTS = {
    "biology": ("college_biology", "high_school_biology"),
    "business": ("business_ethics", "management", "marketing"),
    "chemistry": ("college_chemistry", "high_school_chemistry"),
    "computer science": (
        "college_computer_science", "computer_security", "high_school_computer_science", "machine_learning",
    ),
    "culture": ("human_sexuality", "sociology"),
    "economics": ("econometrics", "high_school_macroeconomics", "high_school_microeconomics"),
    "engineering": ("electrical_engineering",),
    "geography": ("high_school_geography",),
    "health": (
        "anatomy", "clinical_knowledge", "college_medicine", "human_aging", "medical_genetics", "nutrition",
        "professional_medicine", "virology",
    ),
    "history": (
        "high_school_european_history", "high_school_us_history", "high_school_world_history", "prehistory",
    ),
    "law": ("international_law", "jurisprudence", "professional_law"),
    "math": (
        "abstract_algebra", "college_mathematics", "elementary_mathematics", "high_school_mathematics",
        "high_school_statistics",
    ),
    "other": ("global_facts", "miscellaneous", "professional_accounting"),
    "philosophy": (
        "formal_logic", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy", "world_religions",
    ),
    "physics": ("astronomy", "college_physics", "conceptual_physics", "high_school_physics"),
    "politics": (
        "high_school_government_and_politics", "public_relations", "security_studies", "us_foreign_policy",
    ),
    "psychology": ("high_school_psychology", "professional_psychology"),
}  # fmt: skip
SUBCATEGORY = {subject: name for name, subjects in _SUBJECTS.items() for subject in subjects}
"""Subject -> its subcategory."""

_DOMAINS = {
    "medicine": {"health"},
    "history": {"history"},
    "engineering": {"engineering"},
    "jurisprudence": {"law", "politics", "culture", "economics", "geography", "psychology"},
    "law": {"law"},
}


def chosen_subjects(which: MmluSubjects) -> list[str]:
    """The subjects of a domain, or with `not` before it all others, sorted."""
    domain = which.removeprefix("not ")
    return sorted(
        subject
        for subject, name in SUBCATEGORY.items()
        if which == "all" or (name in _DOMAINS[domain]) == (which == domain)
    )
