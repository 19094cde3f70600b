"""Stage 03: first stages, denoisers and the GAN baseline, and their training on the training patients of a fold.

Contract: a training is a function of its settings, data and seed alone: randomness comes from (seed, step), so that
a training that was interrupted ends as one that was not.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=(
        "autoencoder autoencoder_training autoencoder_units compvis_checkpoint denoiser denoiser_training "
        "denoiser_units figures gan gan_units latent_pools operations over_training_units protocol resumable sampler "
        "shipped_autoencoder stage"
    ).split(),
    submod_attrs={
        "autoencoder": ("CPU_GROUP FirstStage decode_latents encode_images groups latent_shape published").split(),
        "autoencoder_units": (
            "autoencoder_tasks autoencoder_unit before_training first_stage folds_of latent_tasks "
            "latents_unit make_latents origins owner phases reconstruction_distance "
            "reconstruction_table reconstructions shape_of_latents shared stored_pools train_autoencoder train_phases"
        ).split(),
        "denoiser": "build_unet compile_network count_parameters forward_flops".split(),
        "denoiser_training": "VALIDATED start_training train".split(),
        "denoiser_units": (
            "N_PREVIEW PREVIEW balanced_tasks ldm_unit network_table new_denoiser placed previews "
            "schedule_options train_ldm"
        ).split(),
        "figures": "image_row mosaic".split(),
        "gan_units": "NAME gan_unit painter reference table train_gan".split(),
        "latent_pools": "LatentPool".split(),
        "over_training_units": "Frames load_denoiser weights_unit".split(),
        "protocol": "changes cohort in_words models reading".split(),
        "sampler": "gaussian_latents passes".split(),
        "stage": "assert_comparable claims open_preprocessed look train_all units".split(),
    },
)
