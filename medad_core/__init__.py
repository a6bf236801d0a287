"""Everything except the orchestration. `README.md` beside this file describes the method and the architecture.

Glossary:

Data
    case         One examination of one patient, named by its case_id. Two visits of a patient are two cases.
    study        A case as it is in an inbox: its files, their paths and their content.
    volume       The 3-D image of one modality of a case.
    slice        One axial picture of a volume: upright, 8 bits a pixel, named by (case_id, slice_index).
    finding      What the mask of a slice says of its tumour: where, on which side, how large, how many parts.
    question     What the LLM is asked of a slice. Those of one family have the same kind of answer in many wordings.
    mask         The expert segmentation of a case, or of one slice of it. A case without a mask is unlabelled.

Work
    stage        One step of a screening: slices, maps, prompts, answers. Each stage has a folder in RUN.
    part         The rows of some cases in one Parquet file of a stage. A killed run resumes part by part.
    range        The numbers of the parts that one task makes, one after another. The task loads its models once.
    run          One screening of a cohort through all stages, in its folder RUN.

Cohorts
    cohort       The cases that are screened together. `RUN/cohort.json`, written before the first stage, lists them.
                 An incremental cohort is the folder COHORT, which grows batch by batch.
    batch        A run of an incremental cohort. It counts as soon as its commit is written.
                 (The images of one forward pass are a batch too, but only inside a function.)
    revision     The version of a case's content in an incremental cohort, counted from 1.

Bookkeeping of a stage
    plan         Which cases are in which part, and the fingerprint. It is written first, and never changed.
    record       The result of one part: rows, sha256, failed cases with reasons. A part without a record is ignored.
    manifest     The sum over all parts, written last. A stage with a manifest is finished.
    fingerprint  Everything that determines the rows of a stage: hashes of models and weights, scaling, prompts, the
                 previous stage. It does not contain how the rows are made (batch size, device, paths).
    quarantine   Giving up a part that cannot be made: its cases are recorded as failed, with the reason.
                 The rest of the run continues.
"""
